"""Your own images, from a folder `images/CLASS/*.png` to answers about a new one.

The images are drawn here; put yours there instead. With `model="ViT-B-16-quickgelu:openai"`, the
default for a folder, CLIP's published weights are downloaded; the mini CLIP comes with the package.
"""

from pathlib import Path

from PIL import Image, ImageDraw

from cl_clipfit import RunConfig, load_run, run

images = Path("images")
for name in ("circle", "square", "line", "cross"):
    for number in range(10):
        (images / name).mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (32, 32), (20 * number, 40, 90))
        draw, left = ImageDraw.Draw(image), 2 + number
        box = (left, left, left + 18, left + 18)
        if name == "circle":
            draw.ellipse(box, fill="white")
        elif name == "square":
            draw.rectangle(box, fill="white")
        else:
            draw.line(box, fill="white", width=3)
            if name == "cross":
                draw.line((box[0], box[3], box[2], box[1]), fill="white", width=3)
        image.save(images / name / f"{number}.png")

config = RunConfig(
    scenario="folder", data_dir=images, tasks=2, model="mini", strategy=["clipfit"], epochs=5
)
(result,) = run(config)  # a fifth of each class is held back as test images
print(f"last accuracy: {result.metrics['last_accuracy']:.1f} %, in {result.path}")

for label, probability in load_run(result.path).predict([images / "circle/3.png"], top=3)[0]:
    print(f"{label}: {100 * probability:.0f} %")
