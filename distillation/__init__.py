"""What teaches: objectives made of losses, teachers, students with layers, and the losses themselves."""
