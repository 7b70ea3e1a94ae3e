"""Word problems in several languages, with a number as their answer."""

from megatron_qwen3.posttrain.rewards.tasks.made import (
    CHINESE,
    ENGLISH,
    FRENCH,
    GERMAN,
    SPANISH,
    Made,
    TaskDraw,
)

_BOXED = {
    ENGLISH: " Put the final number into \\boxed{}.",
    GERMAN: " Schreibe die Zahl am Ende in \\boxed{}.",
    FRENCH: " Mets le nombre final dans \\boxed{}.",
    SPANISH: " Pon el número final en \\boxed{}.",
    CHINESE: "请把最终的数字写在 \\boxed{} 里。",
}
_SHOP = {  # a things of b each, c paid: the change
    ENGLISH: (
        "{name} buys {a} notebooks for {b} dollars each and pays with {c} dollars. How many "
        "dollars does {name} get back?",
        "A notebook costs {b} dollars. {name} takes {a} of them and hands over {c} dollars. What "
        "is the change in dollars?",
    ),
    GERMAN: (
        "{name} kauft {a} Hefte zu je {b} Euro und bezahlt mit {c} Euro. Wie viele Euro bekommt "
        "{name} zurück?",
    ),
    FRENCH: (
        "{name} achète {a} cahiers à {b} euros chacun et paie avec {c} euros. Combien d'euros lui "
        "rend-on ?",
    ),
    SPANISH: (
        "{name} compra {a} cuadernos a {b} euros cada uno y paga con {c} euros. ¿Cuántos euros le "
        "devuelven?",
    ),
    CHINESE: ("{name}买了 {a} 本笔记本，每本 {b} 元，付了 {c} 元。应该找回多少元？",),
}
_SHARE = {  # c things, a eaten, the rest among b
    ENGLISH: (
        "There are {c} cookies. {name} eats {a} of them and shares the rest equally among {b} "
        "friends. How many cookies does each friend get?",
    ),
    GERMAN: (
        "Es gibt {c} Kekse. {name} isst {a} davon und verteilt den Rest gleichmäßig an {b} "
        "Freunde. Wie viele Kekse bekommt jeder?",
    ),
    FRENCH: (
        "Il y a {c} biscuits. {name} en mange {a} et partage le reste également entre {b} amis. "
        "Combien de biscuits chaque ami reçoit-il ?",
    ),
    SPANISH: (
        "Hay {c} galletas. {name} se come {a} y reparte el resto por igual entre {b} amigos. "
        "¿Cuántas galletas recibe cada amigo?",
    ),
    CHINESE: ("有 {c} 块饼干。{name}吃了 {a} 块，把剩下的平均分给 {b} 个朋友。每个朋友得到几块？",),
}
_NAMES = ("Anna", "Ben", "Clara", "David", "Eva", "Felix", "Maria", "Noah", "Sofia", "Tom")


def story(draw: TaskDraw) -> Made:
    """A problem on change at a shop, or on sharing things."""
    a, b = draw.randint(2, 9), draw.randint(2, 12)
    if draw.random() < 0.5:
        answer = draw.randint(0, 40)
        c, (language, wording) = a * b + answer, draw.wording(_SHOP)
    else:
        answer = draw.randint(1, 12)
        c, (language, wording) = a + b * answer, draw.wording(_SHARE)
    text = wording.format(a=a, b=b, c=c, name=draw.choice(_NAMES))
    gold = f"\\boxed{{{answer}}}"
    return Made(text + _BOXED[language], {"kind": "numeric", "gold": answer}, gold, language)
