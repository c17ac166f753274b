"""The cost of an inference as one document: energy.json, and all that is said of it.

- `facts`: counts, places and prices of both networks, put together. `pricing`: prices to use.
- `same_technology`: both networks in one technology. `verdict`: sentences that the numbers force.
- `accuracy`: how right both sides are. `why`: what costs, and what would change the answer.
- `check`: the same models beside published measurements.
- `schema`: every key of the document, and reading it. `export`: CSV and LaTeX.
"""
