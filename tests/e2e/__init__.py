import pytest

# What these assert is then told as plainly as what tests assert.
pytest.register_assert_rewrite(f"{__name__}.jobs", f"{__name__}.streams")
