"""What the command says of hosted providers before anything is started: keys, prices and their age."""

import json

import pytest
from click.testing import CliRunner

import inhouse
from routing.config import SHIPPED

PRICE = {"usd_per_million_input_tokens": 1, "usd_per_million_output_tokens": 2, "as_of": "2026-01-01", "source": "https://x.test/prices"}
GPT = {"name": "gpt-house", "url": "https://api.x.test", "models": [{"name": "gpt", "price": PRICE, "context": 4096}]}


@pytest.fixture
def check(tmp_path):
    """`inhouse routes check` of the shipped routes with one provider; its exit code and all it says."""

    def _check(environment=None, **changes):
        routes = tmp_path / "routes.yaml"
        routes.write_text(f"{SHIPPED.read_text()}providers: {json.dumps([{**GPT, **changes}])}\n")
        found = CliRunner().invoke(inhouse.main, ["routes", "check"], env={"INHOUSE_ROUTES": str(routes), **(environment or {})})
        return found.exit_code, found.output

    return _check


def test_old_prices_are_told_with_where_to_look(check):
    """A price read over 90 days ago is a warning, which names the page; the check passes."""
    code, said = check()
    assert code == 0
    assert "warning: the price of `gpt` was read on 2026-01-01" in said and "https://x.test/prices" in said


def test_a_key_that_is_not_there_is_told_by_its_name(check, tmp_path):
    """Neither the variable nor the file being there, nor something in it that is no key, is found before the router starts."""
    key = tmp_path / "key"
    assert check(key_env="GPT_KEY") == (1, "Error: provider `gpt-house`: the environment has no GPT_KEY; set it, or name a `key_file`\n")
    code, said = check(key_file=str(key))
    assert code == 1 and f"its key file {key} can't be read" in said
    for wrong in ("", "two words", "one\r\nx-evil: 1", "kéy"):
        key.write_text(wrong)
        code, said = check(key_file=str(key))
        assert code == 1 and f"{key} holds no key" in said and "evil" not in said
    assert check({"GPT_KEY": "sk-1"}, key_env="GPT_KEY")[0] == 0
    key.write_text("sk-1\n")
    assert check(key_file=str(key))[0] == 0


@pytest.mark.parametrize("price", [None, {}, {**PRICE, "usd_per_million_input_tokens": -1}, {**PRICE, "source": ""}])
def test_a_hosted_model_without_a_price_is_refused(check, price):
    """No price, half a price, or one that nobody can look up again: no check passes."""
    model = {"name": "gpt", "context": 4096} | ({} if price is None else {"price": price})
    code, said = check(models=[model])
    assert code == 1 and "routes.yaml:" in said
