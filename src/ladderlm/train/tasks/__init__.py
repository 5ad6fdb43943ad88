"""What a model is tuned to do. The kind of the records says which; the kind of the model says how.

              decoder             encoder               encoder-decoder
messages ...  writes (sft)                              writes
class         writes the label    a head: classify      writes the label
spans         writes the list     a head: tag           writes the list
qa            writes the answer   a head: qa            writes the answer
translation   writes              -                     writes (translate)
triple        vectors (embed)     vectors (embed)       -
"""
