"""From a model that continues texts to one that answers: dialogs, their losses, their proof."""
