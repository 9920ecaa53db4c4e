"""What synthetic images, and the model behind them, tell about the patients whose images it was trained on.

*Members* are real images the generator was trained on, *held-out* ones are real images of other patients of the same
population. A generator that knows nothing of its members in particular shows the same for both: every number here is
such a comparison. `copies`, `proximity` and `membership` measure, `gate` turns a number into a verdict, `audit` puts
them together. Pure functions on arrays.
"""
