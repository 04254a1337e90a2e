"""Fine-tuning: LoRA and end-to-end training; what comes out is an encoder that extract can use."""
