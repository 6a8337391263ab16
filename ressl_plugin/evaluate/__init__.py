"""Evaluators of frozen or tuned features: kNN, linear, low-shot SVM, fine-tuning."""
