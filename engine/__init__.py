"""How anything is trained: step, meter, optimizer, numerics, stops, records, checkpoints. Knows no method, no job."""
