"""Flask, Keras and VGG16 as a tutorial ships them: `python -m benchmarks.peers.flask_peer PORT`.

The weights are random, because only the speed is measured.
"""

import sys
from typing import Any

import numpy as np
from flask import Flask, request
from keras.applications import VGG16
from keras.utils import img_to_array
from PIL import Image

CLASSES = ("adenocarcinoma", "large_cell_carcinoma", "normal", "squamous_cell_carcinoma")

app = Flask(__name__)
model = VGG16(weights=None, classes=len(CLASSES))


@app.get("/readyz")
def readyz() -> str:
    return "ready"


@app.post("/predict")
def predict() -> dict[str, Any]:
    image = Image.open(request.files["images"].stream).convert("RGB").resize((224, 224))
    probabilities = model.predict(np.expand_dims(img_to_array(image) / 255, axis=0))[0]
    return {"label": CLASSES[int(probabilities.argmax())], "probabilities": probabilities.tolist()}


if __name__ == "__main__":
    app.run(port=int(sys.argv[1]))
