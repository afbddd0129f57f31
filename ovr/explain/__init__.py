"""Why a head gave a row its logit: what each part of the row - a column, a word, a pixel - adds to it, by captum."""
