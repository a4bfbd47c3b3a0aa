"""Recipes: settings of a training in a TOML file, the papers' own among them."""

import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "recipes"


class RecipeError(ValueError):
    """A recipe that cannot be used; its text is one line that names it and what is wrong."""


def names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read(name: str, fields: Collection[str]) -> dict[str, Any]:
    """The settings of a recipe, by field.

    Args:
        name: of a recipe that comes with the package, or the path of a TOML file.
        fields: what it may set, beside `about`, its description.

    Raises:
        RecipeError: unknown, unreadable, or with other keys.
    """
    path = FOLDER / f"{name}.toml" if name in names() else Path(name)
    try:
        recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"expected {', '.join(names())}, or a TOML file, got {name!r}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{name}: not a TOML file that can be read ({error})") from error
    if unknown := sorted(set(recipe) - {*fields, "about"}):
        raise RecipeError(f"{name}: expected settings among {', '.join(fields)}, got {', '.join(unknown)}")
    if nested := sorted(key for key, value in recipe.items() if isinstance(value, dict)):
        raise RecipeError(f"{name}: expected plain values, got a table for {', '.join(nested)}")
    return recipe
