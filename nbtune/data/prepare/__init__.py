"""From sources to a dataset: rows read, checked, held out, tokenised, cached, and every row's fate reported."""
