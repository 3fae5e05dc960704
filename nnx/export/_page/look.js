  const predict = (x) => forward(x, () => {});
  const isBidirectional = "layer1.backward.input_weights" in numbers;

  // An RNN's probabilities if the sample ended after each step.
  function belief(states) {
    const [T, D] = states.shape, read = tensor(states.shape, states.data.slice());
    if (facts.read === "mean") {
      for (let t = 1; t < T; t++) for (let i = 0; i < D; i++) read.data[t * D + i] += read.data[(t - 1) * D + i];
      read.data.forEach((sum, i) => (read.data[i] = sum / (Math.floor(i / D) + 1)));
    }
    const logits = linear(read, numbers["output.weights"], numbers["output.bias"]);
    return logits.shape[1] === 1 ? twoClasses(logits) : softmax(logits);
  }

  // The probabilities, and what the layers did.
  function look(x) {
    const outputs = [], attention = [];
    arithmetic.watchAttention((shares) => attention.push(shares));
    const probabilities = forward(x, (title, output) => outputs.push({ title, x: output }));
    arithmetic.watchAttention(null);
    const hasBelief = facts.model === "rnn" && !isBidirectional;
    return { probabilities, outputs, attention, belief: hasBelief ? belief(outputs[outputs.length - 1].x) : null };
  }

  return { predict, look, classToken: "class_token" in numbers };
