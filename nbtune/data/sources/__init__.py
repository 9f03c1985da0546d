"""What is given (a name, a file, a variable, a Hub id) as rows: resolved, read, streamed, kept with a run."""
