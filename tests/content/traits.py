"""Chat templates with what makes real ones difficult, one trait each, for the tiny tokenizer's tokens."""

from tests.tiny_models import CHAT_TEMPLATE

_HEAD = "<|im_start|>{{ m.role }}\n"
_PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
_OTHERS = _HEAD + "{{ m.content }}<|im_end|>\n"

DROPS_REASONING = (
    "{% set ns = namespace(last=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% set parts = m.content.split('</think>') %}"
    "{% set thought = m.reasoning_content or (parts[0].split('<think>')[-1] if parts|length > 1 else '') %}"
    + _HEAD
    + ""
    "{% if loop.index0 > ns.last %}<think>\n{{ thought.strip() }}\n</think>\n\n{% endif %}{{ parts[-1].strip() }}"
    "<|im_end|>\n{% else %}" + _OTHERS + "{% endif %}{% endfor %}" + _PROMPT
)
"""Of earlier answers; the last one always has it, empty where there is none. As Qwen 3."""
OPENS_REASONING = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    + _HEAD
    + "{{ m.content.split('</think>')[-1].strip() }}<|im_end|>\n"
    "{% else %}" + _OTHERS + "{% endif %}{% endfor %}" + _PROMPT.replace("\n{%", "\n<think>\n{%")
)
"""The prompt begins it and every turn that is rendered has lost it. As DeepSeek-R1-Distill."""
ENDS_ONCE = CHAT_TEMPLATE.replace("{% if add", "{% if not add_generation_prompt %}<|end|>{% endif %}{% if add")
"""Writes the end token after the whole conversation. As Phi-4-mini."""
OTHER_END_LAST = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{{ '<|end|>' if loop.last and m.role == 'assistant' else '<|im_end|>' }}\n{% endfor %}" + _PROMPT
)
"""Ends the last answer with another token than those before. As gpt-oss."""
MASKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}" + _OTHERS + "{% endgeneration %}"
    "{% else %}" + _OTHERS + "{% endif %}{% endfor %}" + _PROMPT
)
"""Marks what is generated, with the head of the turn, which is the prompt's. As SmolLM3."""
MASKED_WITHOUT_END = (
    "{% for m in messages %}" + _HEAD + "{% if m.role == 'assistant' %}note:\n{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}" + _PROMPT
)
"""Marks the content alone; a model must learn to stop."""
OPENS_NEXT_TURN = (
    "<|begin|>{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    "<|im_start|>assistant{% if add_generation_prompt %}\n{% endif %}"
)
"""Whatever was last. As Command A."""
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}" + _OTHERS + "{% endfor %}" + _PROMPT
)
"""As Gemma and Gemma 2."""
SYSTEM_AT_END = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}"
    "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}"
    + _HEAD
    + "{% if loop.last and m.role == 'user' %}{{ system or '' }}{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}" + _PROMPT
)
"""Puts the system prompt before the latest question, where it is no longer once that is answered. As Mistral."""
TEXT_IN_PARTS = (
    "{% for m in messages %}" + _HEAD + "{% for part in m.content if part.type == 'text' %}{{ part.text }}{% endfor %}"
    "<|im_end|>\n{% endfor %}" + _PROMPT
)
"""Reads nothing else. As Idefics 3."""

TRAITS = {
    "appends": CHAT_TEMPLATE,
    "drops reasoning": DROPS_REASONING,
    "opens reasoning": OPENS_REASONING,
    "ends once": ENDS_ONCE,
    "another end last": OTHER_END_LAST,
    "masked": MASKED,
    "masked without end": MASKED_WITHOUT_END,
    "opens the next turn": OPENS_NEXT_TURN,
    "no system": NO_SYSTEM,
    "system at the end": SYSTEM_AT_END,
    "text in parts": TEXT_IN_PARTS,
}
"""Those that end each turn with a token."""

TOOLS = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool|tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}" + _HEAD + "{{ m.content }}{% for call in m.tool_calls or [] %}<call>"
    "{{ {'name': call.function.name, 'arguments': call.function.arguments}|tojson }}</call>{% endfor %}<|im_end|>\n"
    "{% endfor %}" + _PROMPT
)
"""Writes tools and calls, arguments as JSON."""
TOOLS_AS_TEXT = TOOLS.replace(
    "{{ {'name': call.function.name, 'arguments': call.function.arguments}|tojson }}",
    "{{ call.function.name + ' ' + call.function.arguments }}",
)
"""Takes arguments that are text. As DeepSeek-V3."""
THINKS = (
    "{% for m in messages %}" + _HEAD + "{{ m.content }}<|im_end|>\n{% endfor %}" + _PROMPT + ""
    "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}"
)
"""Closes the reasoning where it is told so."""
