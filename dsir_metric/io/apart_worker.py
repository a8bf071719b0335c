"""Read a file with ITK in a process of its own: python apart_worker.py KIND READER SOURCE TARGET MEMORY SECONDS.

Run as a script, so that nothing but SimpleITK is imported. Prints one line of JSON.
"""

import contextlib
import json
import sys

import SimpleITK as sitk


def read(kind: str, reader: str, source: str, target: str) -> dict[str, object]:
    """Copy what ITK reads from `source` to a plain file `target`; of a header say what is in it."""
    if kind == "transform":
        sitk.WriteTransform(sitk.ReadTransform(source), target)
        return {}
    file = sitk.ImageFileReader()
    file.SetImageIO(reader)
    file.SetFileName(source)
    if kind == "image":
        image = file.Execute()
        for key in image.GetMetaDataKeys():  # they would become lines of the header
            image.EraseMetaData(key)
        sitk.WriteImage(image, target)
        return {}
    file.ReadImageInformation()
    return {
        "size": file.GetSize(),
        "spacing": file.GetSpacing(),
        "origin": file.GetOrigin(),
        "direction": file.GetDirection(),
        "components": file.GetNumberOfComponents(),
    }


def limit(memory_bytes: int, seconds: int) -> None:
    """Bound what a header that lies can take, where the system can."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        for what, most in ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_CPU, seconds)):
            hard = resource.getrlimit(what)[1]
            resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def main(kind: str, reader: str, source: str, target: str, memory_bytes: str, seconds: str) -> None:
    """Print the answer: what was read, or the error of ITK."""
    limit(int(memory_bytes), int(seconds))
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        answer = read(kind, reader, source, target)
    except (RuntimeError, MemoryError) as error:
        answer = {"error": str(error) or "bad_alloc"}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
