"""What the model itself says: Hugging Face transformers in bf16, one prompt at a time, nothing reused.

Slow, and as near to the published weights as it gets. Engines are held to it. Run in a process of its own, whose end
gives the GPU's memory back.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from worker.engines.base import VerdictTokens


def reference_log_odds(checkpoint: Path, prompts: Sequence[Sequence[int]], tokens: VerdictTokens) -> Iterator[float]:
    """Compute logit("A") - logit("B") after each prompt, in order.

    Args:
        checkpoint: the folder of the model.
        prompts: token ids.
        tokens: the ids of the verdicts.
    """
    import torch  # noqa: PLC0415 - on GPU hosts alone
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    model = AutoModelForCausalLM.from_pretrained(str(checkpoint), dtype=torch.bfloat16, local_files_only=True)
    model = model.to("cuda").eval()
    with torch.inference_mode():
        for prompt in prompts:
            ids = torch.tensor([list(prompt)], device="cuda")
            row = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1].float()
            yield float(row[tokens.a]) - float(row[tokens.b])
