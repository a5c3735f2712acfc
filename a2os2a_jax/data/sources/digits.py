"""Handwritten digits, 8x8, that come with scikit-learn: real images, no download.

Source: Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits, UCI; the
1,797 images of its test part. Pixels count the black dots of 4x4 blocks, 0 to 16.
"""

import jax

from a2os2a_jax.data import pipeline

SIZE = 8  # as they are stored
TEST_EXAMPLES = 360  # stratified and fixed, `pipeline.stratified`; 1,437 are left
MEAN, STD = 0.3047, 0.3759  # of pixel / 16 over the 1,437


def load(
    *, size: int = SIZE, classes: int = 10, validation: int = 0
) -> pipeline.Dataset:
    """1,437 training and 360 test images [8, 8, 1], x = (pixel / 16 - MEAN) / STD.

    Args:
      size: 8 gives the images as they are; above, they are enlarged on the device, by
        bilinear interpolation between pixel centres. No detail is added.
      classes: 10, nothing else.
      validation: this many training images are held out, stratified and always the
        same ones. MEAN and STD stay those of all 1,437 images of 8x8.
    Raises:
      ValueError: a size below 8, another number of classes, too large a validation
        split.
      ImportError: scikit-learn is missing.
    """
    if size < SIZE or classes != 10:
        raise ValueError(
            f"digits: got size {size} and {classes} classes, expected at least {SIZE} "
            "and 10"
        )
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "digits needs scikit-learn: pip install scikit-learn"
        ) from error

    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, SIZE, SIZE, 1).astype("uint8")
    train, test = pipeline.stratified(labels, TEST_EXAMPLES)
    kept, held = pipeline.stratified(labels[train], validation)

    def decode(x: jax.Array) -> jax.Array:
        x = (x / 16 - MEAN) / STD
        if size == SIZE:
            return x
        return jax.image.resize(x, (len(x), size, size, 1), "bilinear")

    def split(index):
        return pipeline.resident_split(images[index], labels[index], decode=decode)

    return pipeline.Dataset(
        name="digits",
        shape=(size, size, 1),
        classes=10,
        train=split(train[kept]),
        test=split(test),
        validation=split(train[held]) if validation else None,
        class_names=tuple("0123456789"),
        mean=(MEAN,),
        std=(STD,),
        stored=(SIZE, SIZE),
        about="scikit-learn's handwritten digits (UCI), 1,437 + 360 images of 8x8",
    )
