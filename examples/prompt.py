"""Rung one in five lines: an answer, and what the model thinks comes next."""

import ladderlm

chat = ladderlm.open_chat("smollm2-135m-instruct")
for delta in chat.stream(ladderlm.Conversation.of("Say hello in French."), ladderlm.Sampling(max_tokens=40)):
    print(delta.text, end="", flush=True)
print()
for candidate in chat.next("Listen to your", 5):
    print(f"{candidate.logprob:7.2f}  {candidate.text!r}")
