"""What an answer is rewarded for: rules, judges, reward models, form; and reports on both."""
