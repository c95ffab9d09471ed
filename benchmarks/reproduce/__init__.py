"""`make reproduce`: co-finetuning against transfer learning on the toy world. The protocol is docs/reproduce.md."""
