
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const [which, part, words, order, list, article] = ["which", "part", "words", "order", "list", "pair"].map(at);

  function make(tag, text, className) {
    const element = document.createElement(tag);
    if (text !== undefined && text !== null) element.textContent = text;
    if (className) element.className = className;
    return element;
  }

  // The same rule as `select` in producer/evals/numbers.py: a list stands for any of its values, and a column that is
  // itself a list holds the value.
  function fits(found, wanted) {
    if (Array.isArray(wanted)) return wanted.includes(found);
    return Array.isArray(found) ? found.includes(wanted) : found === wanted;
  }
  const chosen = (row, where) => Object.entries(where).every(([name, wanted]) => fits(row[name], wanted));

  const confidence = (row) => (row.probability_a === null ? 1 : Math.max(row.probability_a, 1 - row.probability_a));
  const text = (turns) => turns.map((turn) => turn.content).join("\n");
  data.rows.forEach((row, index) => {
    row.place = index;
    row.words = [row.id, row.subset ?? "", ...(row.texts ?? []).map(text)].join("\n").toLowerCase();
  });
  const ORDERS = {
    hard: (one, other) => one.place - other.place,
    sure: (one, other) => confidence(other) - confidence(one) || one.place - other.place,
    id: (one, other) => one.id.localeCompare(other.id, "en", { numeric: true }),
  };

  which.append(new Option("any number", ""));
  data.numbers.forEach((number, index) => which.append(new Option(`${number.label} (${number.n})`, String(index))));
  [["all", "all"], ["hit", "those that count"], ["other", "the others"]].forEach(([value, label]) =>
    part.append(new Option(label, value)),
  );

  function rows() {
    const number = data.numbers[which.value];
    const wanted = words.value.toLowerCase().trim();
    part.disabled = !number?.hit;
    const kept = data.rows.filter((row) => {
      if (wanted && !row.words.includes(wanted)) return false;
      if (!number) return true;
      if (!chosen(row, number.where)) return false;
      if (!number.hit || part.value === "all") return true;
      return chosen(row, number.hit) === (part.value === "hit");
    });
    return kept.sort(ORDERS[order.value]);
  }

  function behind(number, shown) {
    if (!number) return `${shown} of ${data.total} rows are shown.`;
    let all = number.n;
    if (number.hit && part.value === "hit") all = number.hits;
    if (number.hit && part.value === "other") all = number.n - number.hits;
    const where = { ...number.where, ...(number.hit && part.value === "hit" ? number.hit : {}) };
    const rest = shown < all && !words.value ? ` The others are in rows.jsonl, where ${JSON.stringify(where)}.` : "";
    const share = number.hits === null ? "" : `, ${number.hits} of ${number.n}`;
    return `${number.label}: ${number.value}${share}. ${shown} of its ${all} rows are shown.${rest}`;
  }

  function outcome(row) {
    if (row.winner === null) return row.fate ?? row.error ?? row.status;
    const who = row.winner === "tie" ? "tie" : `${row.winner} better`;
    const sure = row.probability_a === null ? "" : `, P ${confidence(row).toFixed(2)}`;
    return who + sure + (row.consistent === false ? ", orders disagree" : "");
  }

  function refresh() {
    const found = rows();
    list.replaceChildren(
      ...found.map((row) => {
        const item = make("li");
        const button = make("button", row.id);
        button.type = "button";
        button.append(make("small", (row.subset ? `${row.subset}: ` : "") + outcome(row)));
        button.addEventListener("click", () => show(row, button));
        item.append(button);
        return item;
      }),
    );
    at("count").textContent = behind(data.numbers[which.value], found.length);
    if (found.length) show(found[0], list.querySelector("button"));
    else article.replaceChildren(make("p", "No row in this page fits.", "note"));
  }

  function body(turns) {
    const box = make("div", null, "body");
    box.tabIndex = 0;
    turns.forEach((turn) => {
      if (turn.role) box.append(make("p", turn.role, "role"));
      box.append(make("p", turn.content === "" ? "(empty)" : turn.content));
    });
    return box;
  }

  function side(row, letter, turns) {
    const box = make("section", null, row.winner === letter ? "text won" : "text");
    const head = make("h4", `Response ${letter}` + ((letter === "A" ? row.system_a : row.system_b) ? `: ${letter === "A" ? row.system_a : row.system_b}` : ""));
    if (row.winner === letter) head.append(make("span", "judged better", "mark good"));
    if (row.label === letter) head.append(make("span", "labelled better", row.winner === letter || row.winner === null ? "mark good" : "mark bad"));
    box.append(head, body(turns));
    return box;
  }

  function ballots(row) {
    const table = make("table");
    const head = make("tr");
    ["order", "shown first", "preferred", "log-odds of the first"].forEach((name) => head.append(make("th", name)));
    table.createTHead().append(head);
    const lines = table.createTBody();
    [["ab", "A"], ["ba", "B"]].forEach(([name, first]) => {
      const vote = row[`vote_${name}`];
      const odds = row[`log_odds_${name}`];
      const line = lines.insertRow();
      [name, `response ${first}`, vote === null ? "not asked" : `response ${vote}`, odds === null ? "–" : odds.toFixed(3)].forEach(
        (cell) => line.append(make("td", cell)),
      );
    });
    return table;
  }

  function show(row, button) {
    list.querySelectorAll("[aria-current]").forEach((each) => each.removeAttribute("aria-current"));
    button.setAttribute("aria-current", "true");
    const title = make("h3", row.id + (row.subset ? ` (${row.subset})` : ""));
    if (row.consistent === false) title.append(make("span", "orders disagree", "mark bad"));
    if (row.fate) title.append(make("span", row.fate, "mark"));
    const parts = [title];
    if (row.texts) {
      const [prompt, a, b] = row.texts;
      const asked = make("section", null, "text");
      asked.append(make("h4", "Prompt"), body(prompt));
      const sides = make("div", null, "sides");
      sides.append(side(row, "A", a), side(row, "B", b));
      parts.push(asked, sides);
    } else parts.push(make("p", "Its text is not there.", "note"));
    const facts = [`Verdict: ${outcome(row)}`];
    if (row.probability_a !== null) facts.push(`P(A better) ${row.probability_a.toFixed(4)}`);
    if (row.position_bias !== null) facts.push(`position bias ${row.position_bias.toFixed(3)}`);
    if (row.round !== null) facts.push(`round ${row.round}`);
    parts.push(make("p", `${facts.join("; ")}.`), ballots(row));
    article.replaceChildren(...parts);
  }

  list.addEventListener("keydown", (event) => {
    const buttons = [...list.querySelectorAll("button")];
    const step = { ArrowDown: 1, ArrowUp: -1, j: 1, k: -1, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined) return;
    const next = Math.min(Math.max(buttons.indexOf(document.activeElement) + step, 0), buttons.length - 1);
    event.preventDefault();
    buttons[next].focus();
    buttons[next].click();
  });

  document.querySelectorAll("table.sortable").forEach((table) => {
    const heads = [...table.querySelectorAll("thead th")];
    heads.forEach((head, column) =>
      head.querySelector("button").addEventListener("click", () => {
        const key = (line) => line.cells[column].dataset.key;
        const lines = [...table.tBodies[0].rows];
        const numeric = lines.every((line) => key(line) === "" || Number.isFinite(Number(key(line))));
        const ascending = head.getAttribute("aria-sort") === "none" ? !numeric : head.getAttribute("aria-sort") === "descending";
        heads.forEach((each) => each.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
        lines.sort((one, other) => {
          const [x, y] = [key(one), key(other)];
          if (x === "" || y === "") return (x === "") - (y === "");
          const by = numeric ? Number(x) - Number(y) : x.localeCompare(y, "en", { numeric: true });
          return ascending ? by : -by;
        });
        table.tBodies[0].append(...lines);
      }),
    );
  });

  function follow() {
    const asked = /^#n(\d+)$/.exec(location.hash);
    if (!asked || !data.numbers[asked[1]]) return;
    const number = data.numbers[asked[1]];
    which.value = asked[1];
    // A share of all rows there are says something of those that count in it alone.
    part.value = number.hit && Object.keys(number.where).length === 0 ? "hit" : "all";
    words.value = "";
    refresh();
    at("pairs").scrollIntoView();
    at("pairs").focus({ preventScroll: true });
  }
  [which, part, order].forEach((each) => each.addEventListener("change", refresh));
  words.addEventListener("input", refresh);
  window.addEventListener("hashchange", follow);
  document.querySelectorAll("a[href^='#n']").forEach((each) =>
    each.addEventListener("click", () => location.hash === each.getAttribute("href") && follow()),
  );
  refresh();
  follow();
})();
