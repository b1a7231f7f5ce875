"""What a frozen or fine-tuned backbone is worth on dense tasks: one file per protocol, plain PyTorch and transformers.

python -m training.evaluation PROTOCOL --model PATH_OR_ID --data DIR_OR_ID --output results.json
"""
