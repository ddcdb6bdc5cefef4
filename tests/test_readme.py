"README.md says what nbs/index.ipynb says."
from readme import differences, render


def test_readme_is_the_index():
    assert not differences(), "run: python tests/readme.py"


def test_readme_is_worth_reading():
    text, pictures = render()
    assert text.startswith("# imgcls") and "make train" in text and len(pictures) >= 3
    assert "base64" not in text and "#|" not in text
