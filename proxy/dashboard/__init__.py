"""The carbon dashboard: from the ledger's roll-ups to pages, exports and reports.

    periods.py         2026-10 and its like, in a team's time zone
    sites.py           what no meter says: places, owners, contracts
    queries.py         roll-ups as columns of whole numbers          (reads the ledger)
    accounting.py      the rules: ranges, grade, idle, scopes, savings          (pure)
    account.py         cells of energy with their grams                         (pure)
    lines.py           exact sums of cells and requests                         (pure)
    decomposition.py   why a total changed                                      (pure)
    advice.py          what to do next, with ranges                             (pure)
    snapshot.py        everything that a page or an export may show, with its hash
    frozen.py          snapshots kept under their hash
    numbers.py         numbers as de, en and fr write them
    charts.py          SVG, drawn here
    pages.py           routes; templates/ holds the words
    views.py, where.py            what each page shows
    exports.py, report_pdf.py     CSV, JSON, Parquet, FOCUS, ESRS E1-6, PDF

Pages and exports are made from one Snapshot, so they cannot disagree.
"""
