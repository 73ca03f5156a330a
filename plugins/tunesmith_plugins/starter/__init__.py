"""What the package carries for its demo: a generator of dialogues, two tiny models and the script that trains them."""
