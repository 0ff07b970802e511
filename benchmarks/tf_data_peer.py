"""The tf.data side of input_pipeline.py; runs in a Python that has TensorFlow, and needs no other.

    python benchmarks/tf_data_peer.py FOLDER one|all

FOLDER holds work.npz, which input_pipeline.py wrote: encoded JPEGs, boxes and flips. Each line on
standard input asks for a round, and is answered by a line of JSON; "pixels" writes what came out.
"""

import json
import os
import pathlib
import sys
import time

import numpy as np

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow as tf

SIZE = 224
BATCH = 32


def load(path: pathlib.Path) -> tuple[list[bytes], np.ndarray, np.ndarray]:
    """Encoded images, their boxes (left, top, right, bottom), and which are mirrored."""
    work = np.load(path)
    ends = np.cumsum(work["lengths"])
    content = work["content"].tobytes()
    records = [content[e - n : e] for e, n in zip(ends, work["lengths"], strict=True)]
    return records, work["boxes"], work["flips"]


def dataset(folder: pathlib.Path, *, one_core: bool) -> tf.data.Dataset:
    """Decodes and crops in one operation, resizes with antialiasing, flips: batches of uint8."""
    records, boxes, flips = load(folder / "work.npz")
    left, top, right, bottom = boxes.T.astype(np.int32)
    windows = np.stack([top, left, bottom - top, right - left], axis=1)

    def example(content: tf.Tensor, window: tf.Tensor, flip: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_and_crop_jpeg(
            content, window, channels=3, dct_method="INTEGER_ACCURATE"
        )
        image = tf.image.resize(image, (SIZE, SIZE), method="bicubic", antialias=True)
        image = tf.cond(flip, lambda: image[:, ::-1], lambda: image)
        return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)

    data = tf.data.Dataset.from_tensor_slices((records, windows, flips))
    data = data.map(example, num_parallel_calls=1 if one_core else tf.data.AUTOTUNE)
    data = data.batch(BATCH).prefetch(1 if one_core else tf.data.AUTOTUNE)
    options = tf.data.Options()
    if one_core:
        options.threading.private_threadpool_size = 1
        options.threading.max_intra_op_parallelism = 1
    return data.with_options(options)


def main() -> None:
    folder, cores = pathlib.Path(sys.argv[1]), sys.argv[2]
    one_core = cores == "one"
    if one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    data = dataset(folder, one_core=one_core)
    for line in sys.stdin:
        if line.strip() == "pixels":
            np.save(folder / "pixels.npy", np.concatenate([b.numpy() for b in data]))
            print(json.dumps({"tensorflow": tf.__version__}), flush=True)
            continue
        began, cpu = time.perf_counter(), time.process_time()
        count = sum(len(batch) for batch in data)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        print(json.dumps({"images": count, "seconds": seconds, "cpu": cpu}), flush=True)


if __name__ == "__main__":
    main()
