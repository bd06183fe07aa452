"""The HTTP edge: thin routes over the functions of producer."""
