"""The page that shows where the memory is."""

import html.parser
import tempfile
import unittest
import xml.etree.ElementTree
from pathlib import Path

import device_memory
from device_memory import MisuseError


class Balanced(html.parser.HTMLParser):
    """Notes which tags are open, and what is said where one points."""

    def __init__(self):
        super().__init__()
        self.open, self.told = [], []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open.pop() != tag:
            raise AssertionError(f"{tag} ends what it did not begin")

    def handle_data(self, data):
        if self.open[-1:] == ["title"]:
            self.told.append(data)


class Picture(unittest.TestCase):
    def save(self, **arguments):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "memory.html")
            device_memory.save_picture(path, kind="cpu", **arguments)
            return path.read_text(encoding="utf-8")

    def test_a_page_names_the_blocks(self):
        # More than is written at the first try.
        pointers = [device_memory.allocate(70_000 + step, kind="cpu") for step in range(1000)]
        large = device_memory.allocate(200 << 20, kind="cpu", stream=6)
        page = self.save()
        self.assertGreater(len(page), 1 << 16)
        parser = Balanced()
        parser.feed(page)
        parser.close()
        self.assertEqual(parser.open, [])
        self.assertEqual(parser.told[0], "Memory of cpu:0")
        block = f"large blocks, {200 << 20} bytes asked for, stream(0x6)"
        self.assertTrue(any(block in told for told in parser.told))
        self.assertEqual(xml.etree.ElementTree.fromstring(page).tag, "html", "programs for XML read it, too")
        self.assertNotIn("<script", page)
        for pointer in (*pointers, large):
            device_memory.free(pointer)

    def test_of_no_device_there_is_no_page(self):
        with self.assertRaises(MisuseError):
            self.save(device=5)


if __name__ == "__main__":
    unittest.main()
