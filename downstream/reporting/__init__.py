"""From an ablation's result folder to the pages a person reads.

`results.py` reads the folder, `findings.py` turns it into one dictionary of numbers (the content of `report.json`),
`words.py` turns numbers into sentences, `plots.py` into figures and `page.py` into HTML and Markdown. Every number on
the pages is in the dictionary; nothing here computes a gain or an interval: `downstream.statistics` does.
"""
