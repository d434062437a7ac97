"""Twenty exports of SmolLM2-135M-Instruct that a sensible person would call good: none of them may be refused.

All layers in int4 (ratio 1.0) is not among them: mean KL 0.30, as far from the source as a wrong rotary base (0.32).
"""

from __future__ import annotations

from tasks.config import Export

# Three sets of calibration texts stand for three seeds: what is fitted to them differs.
FACTS = (
    "The heart pumps blood through the body. It beats about seventy times a minute at rest, and faster when we run. "
    "Blood carries oxygen from the lungs to the muscles and takes carbon dioxide back, which we breathe out.",
    "Water boils at one hundred degrees Celsius at sea level. On a high mountain the air is thinner, so it boils at a "
    "lower temperature, and an egg needs more time to cook there than it does in a kitchen by the sea.",
    "The Roman Empire reached from Britain to Egypt. Its roads were built so well that some of them are in use today, "
    "two thousand years later, and the languages of France, Spain and Italy grew out of the Latin of its soldiers.",
    "A prime number has no divisors but one and itself: 2, 3, 5, 7, 11 and 13 are the first six. There is no largest "
    "prime, as Euclid proved with an argument that takes no more than a few lines.",
)
CHATS = (
    "<|im_start|>user\nHow do I make tea?<|im_end|>\n<|im_start|>assistant\nBoil fresh water, pour it over the leaves, "
    "wait for three to five minutes, and take the leaves out. Add milk or sugar as you like.<|im_end|>\n",
    "<|im_start|>user\nWhat is the largest planet?<|im_end|>\n<|im_start|>assistant\nJupiter is the largest planet of "
    "our solar system. It is a gas giant, more than eleven times as wide as the Earth.<|im_end|>\n",
    "<|im_start|>user\nSay hello in three languages.<|im_end|>\n<|im_start|>assistant\n1. Bonjour (French)\n"
    "2. Hola (Spanish)\n3. Guten Tag (German)<|im_end|>\n",
    "<|im_start|>user\nShould I learn to swim as an adult?<|im_end|>\n<|im_start|>assistant\nYes. It is good exercise, "
    "it may save your life one day, and most pools have classes for beginners of any age.<|im_end|>\n",
)
CODE = (
    "def area(width: float, height: float) -> float:\n    return width * height\n\n\nprint(area(3, 4))\n",
    "SELECT customer.name, SUM(invoice.total) FROM customer JOIN invoice ON invoice.customer = customer.id "
    "GROUP BY customer.name ORDER BY 2 DESC;",
    "To install the package, make a virtual environment, activate it, and run pip install. Then start the program "
    "with the path of your configuration file: it prints what it does, and ends with exit code 0.",
    '{"name": "Grace", "born": 1906, "languages": ["COBOL", "English"], "admiral": true}',
)


def _int4(*, ratio: float = 0.6, group_size: int = 64, sym: bool = True, **other: object) -> Export:
    return Export.model_validate(
        {"weight_format": "int4", "ratio": ratio, "group_size": group_size, "sym": sym, **other}
    )


GOOD: dict[str, Export] = {
    "the recipe's own": _int4(),
    "ratio 0.8": _int4(ratio=0.8),
    "ratio 0.8, groups of 32": _int4(ratio=0.8, group_size=32),
    "groups of 32": _int4(group_size=32),
    "asymmetric": _int4(sym=False),
    "asymmetric, ratio 0.8, groups of 32": _int4(sym=False, ratio=0.8, group_size=32),
    "all of it: asymmetric, ratio 1.0, AWQ, scale estimation on chats": _int4(
        sym=False, ratio=1.0, group_size=32, awq=True, scale_estimation=True, dataset=CHATS
    ),
    "int8_sym backup": _int4(backup_precision="int8_sym"),
    "floating-point backup": _int4(backup_precision="none"),
    "group 128 adjusted": _int4(group_size=128, group_size_fallback="adjust"),
    "int8": Export(weight_format="int8"),
    "int8_sym": Export(weight_format="int8", sym=True),
    "fp16": Export(weight_format="fp16"),
    "fp32": Export(weight_format="fp32"),
    "AWQ without data": _int4(awq=True),
    "AWQ on facts": _int4(awq=True, dataset=FACTS),
    "ratio 0.8, scale estimation on chats": _int4(ratio=0.8, scale_estimation=True, dataset=CHATS),
    "scale estimation on code": _int4(scale_estimation=True, sym=False, dataset=CODE),
    "GPTQ on facts": _int4(gptq=True, dataset=FACTS),
    "layers chosen by activations": _int4(sensitivity_metric="max_activation_variance", dataset=CHATS),
}
