"""Steps for text of the web, for recipes that name them; by default none is done.

    steps = ["data_prep.clean.web_steps:BlockedUrls", "domain", "normalize", …,
             "data_prep.clean.web_steps:PersonalData", "contamination"]
    [options."data_prep.clean.web_steps:BlockedUrls"]
    extra_domains = ["example.org"]

They are datatrove's URL filter and PII formatter, so that any number of tasks gives the same bytes
and nothing is fetched while they run. A URL that is blocked drops its document; one without `url`,
or with one that is no text, stays.
"""

from typing import Any

from datatrove.data import Document

from megatron_qwen3.config import ConfigError


class BlockedUrls:
    """Drops documents by datatrove's lists of domains, URLs and words; options: its URLFilter's."""

    def __init__(self, **options: Any) -> None:
        try:
            from datatrove.pipeline.filters import URLFilter
            from tldextract import TLDExtract

            self._filter = URLFilter(**options)
        except ImportError as error:
            raise ConfigError(
                f"the filter of URLs needs a package that is not installed ({error}): "
                "pip install 'megatron_qwen3[urls]'"
            ) from None
        # The list of public suffixes that came with the package: others would be fetched.
        self._filter.tldextractor = TLDExtract(suffix_list_urls=(), cache_dir=None)
        self._filter.download_data()

    def __call__(self, document: Document) -> str | None:
        url = document.metadata.get("url")
        if not isinstance(url, str) or not url:
            return None
        try:
            kept = self._filter.filter(document)
        except ValueError:  # no URL: a port that is none, half a bracket
            return "url no URL"
        return None if kept is True else f"url {kept[1].replace('_', ' ')}"


class PersonalData:
    """Replaces e-mail and public IP addresses by made-up ones; options are PIIFormatter's."""

    def __init__(self, **options: Any) -> None:
        from datatrove.pipeline.formatters import PIIFormatter

        self._formatter = PIIFormatter(**options)

    def __call__(self, document: Document) -> None:
        for replacer in (self._formatter.emails_replacer, self._formatter.ip_replacer):
            replacer._replace_i = 0  # which stand-in comes next must not depend on other documents
        document.text = self._formatter.format(document.text)
