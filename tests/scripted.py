"""A generator for tests whose answers a function gives: `Scripted(lambda request, k: "text")`."""

from megatron_qwen3.posttrain.building.steps import Steps
from megatron_qwen3.posttrain.generators.answers import Answer


class Scripted:
    """`say(request, sample)` gives an Answer, a text, or an error as an exception."""

    leads = True

    def __init__(self, say, label="scripted"):
        self.say, self.label, self.notes, self.asked = say, label, [], []

    def answers(self, requests):
        for number, request in enumerate(requests):
            self.asked.append(request)
            yield number, [self._answer(request, k) for k in range(request.samples)]

    def _answer(self, request, sample):
        try:
            said = self.say(request, sample)
        except Exception as error:
            return Answer("", "error", None, str(error))
        return said if isinstance(said, Answer) else Answer(said, "stop")


class Silent(Steps):
    """Remembers messages for people."""

    def __init__(self):
        super().__init__()
        self.said = []

    def say(self, line):
        self.said.append(line)


def thought(thinking, content):
    return f"<think>\n{thinking}\n</think>\n\n{content}"


class InProcess:
    """Verifiers without processes: for specs and texts of which none hangs."""

    def judge(self, pairs):
        from megatron_qwen3.posttrain.verifiers import verdict

        return [verdict(spec, text) for spec, text in pairs]
