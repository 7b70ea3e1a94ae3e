"""Answers of a model of ours or of an endpoint: `opened.open_generator(name)`.

answers.py         requests and answers
settings.py        how generators are run
opened.py          a generator by its name
own_generator.py   a model of ours
endpoint.py        one of OpenAI's protocol, over wire.py (HTTP with retries) and replies.py (JSON)
judged.py          a judge's replies
"""
