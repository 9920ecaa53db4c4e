"""What every page of ours is made of: HTML that stands alone, its stylesheet, figures of one look, numbers as words."""
