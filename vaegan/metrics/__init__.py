"""How good, how varied and how close to single patients synthetic images are.

`sources` are images to measure, read block by block; `extraction` turns them into arrays with an extractor (`features`
makes one from its spec) and `cache` keeps these; one file per metric holds a pure function in float64 on such arrays;
`privacy` asks what they tell of training images; `intervals` says how far a number would move with other images.
`vaegan.evaluation` puts them together.
"""
