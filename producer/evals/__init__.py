"""What verdicts say of systems, judges and labels: counted, with intervals, and with the rows behind every number.

Each eval is one pure function from judged rows to one result, a frozen model that turns into JSON by itself. Reading
files, having pairs judged and showing results are the command line's. Every number of a result can name its rows
(`numbers.Number.where`). Needs the extra `evals`.
"""
