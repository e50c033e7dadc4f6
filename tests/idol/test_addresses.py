"""Nothing that may be a secret is left in an address that is shown or stored."""

import pytest

from idol.addresses import shown, without_secrets


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (
            "https://b.s3.amazonaws.com/a.json?X-Amz-Signature=abc",
            "https://b.s3.amazonaws.com/a.json",
        ),
        ("https://user:hush@host:80/a.json#sha256=00", "https://host:80/a.json"),
        ("https://TOKEN@host/a", "https://host/a"),
        ("s3://key:hush@bucket/a.mp4#12", "s3://bucket/a.mp4#12"),
        ("hf://owner/repo@main/a.pth", "hf://owner/repo@main/a.pth"),
        ("abfs://container@account/a?sig=hush", "abfs://container@account/a"),
        ("sqlite:////tmp/m.db", "sqlite:////tmp/m.db"),
        ("folder/a?b=c.json", "folder/a?b=c.json"),
    ],
)
def test_an_address_is_shown_without_user_query_and_fragment(address, expected):
    assert shown(address) == expected
    assert without_secrets(f"'{address}' is gone.") == f"'{expected}' is gone."


def test_a_text_keeps_what_stands_around_an_address():
    text = "video 3 (https://h/a.mp4?sig=hush): gone; see https://h/b?c=hush."
    assert without_secrets(text) == "video 3 (https://h/a.mp4): gone; see https://h/b."
