"""scikit-learn's OneVsRestClassifier behind FastAPI and uvicorn. Runs in an environment of its own, without ovr.

    python sklearn_fastapi.py fit ROWS.npz MODEL.joblib
    MODEL=MODEL.joblib python sklearn_fastapi.py serve PORT WORKERS

A row goes in as the bytes of its float32 values, and its probabilities come out likewise: no JSON on either side. FastAPI offers no
batching.
"""

import os
import sys

import joblib
import numpy as np
from fastapi import FastAPI, Request, Response
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

app = FastAPI()
model = joblib.load(os.environ["MODEL"]) if "MODEL" in os.environ else None


@app.post("/predict")
async def predict(request: Request) -> Response:
    """Return the probabilities of the rows of the body."""
    x = np.frombuffer(await request.body(), np.float32).reshape(-1, model.n_features_in_)
    return Response(model.predict_proba(x).astype(np.float32).tobytes(), media_type="application/octet-stream")


def fit(rows: str, path: str) -> None:
    """Fit a logistic regression a class, and store them."""
    data = np.load(rows)
    joblib.dump(OneVsRestClassifier(LogisticRegression(max_iter=200)).fit(data["x"], data["y"]), path)


if __name__ == "__main__":
    if sys.argv[1] == "fit":
        fit(sys.argv[2], sys.argv[3])
    else:
        import uvicorn

        uvicorn.run("sklearn_fastapi:app", host="127.0.0.1", port=int(sys.argv[2]), workers=int(sys.argv[3]), access_log=False)
