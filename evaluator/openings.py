"""How the documents begin that a model writes to calibrate itself: one opening a line, of many kinds of text.

A model left to itself after its BOS token writes about what it was last tuned on; a chat model writes chat and business
talk. A few words of encyclopaedia, news, story, advice, science or code each make it show what else it was trained on.
"""

OPENINGS = tuple(
    """\
The history of
The first known
The city of
The river
The species is
The film was
The song was
The album was released
The album
The battle of
The village of
The company was founded in
The University of
The National
The British
The American
The king of
The church was built in
The bridge
The ship was
The team won
The season began
The player scored
The storm formed
The episode was written by
The novel tells the story of
The book was published in
The painting
The castle
The railway opened in
He was born in
She was born in
He was an American
She was an Australian
In 1864,
In 1923,
In the early 20th century,
In the 19th century,
During the Second World War,
After the war,
At the beginning of
Between 1990 and 1995,
On 14 March
It is located in
It was designed by
According to
A spokesman for
The government said on Monday that
Police are investigating
The president
The mayor of
Officials said
A new study
Researchers at the University of
Scientists have discovered
The results of the study
The cells of
In mathematics,
In physics,
The theory of
A protein that
The disease is caused by
The plant grows
Birds of this genus
The planet
Water is
Once upon a time
It was a dark
"Where are you going?"
He opened the door
She looked at him and
My mother used to
When I was a child,
I have been
I bought this
I love the
We stayed at this hotel
This recipe is
Preheat the oven
To make the
How to
The best way to
If you want to
You can use
There are many ways to
Here are some
What is the
Why do
Our company
The new model
Click here to
Join us for
All rights reserved
Copyright
This agreement
Under the law,
The court held that
The customer
Prices start at
The game takes place in
Players can
The software
import numpy as np
def
<p>
Chapter 1
Introduction
Abstract
Dear
Q:
Thanks for
""".splitlines()
)
