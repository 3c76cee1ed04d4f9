"""The model of the reader without a lock holds, and says so of nothing that is weaker."""

import importlib.util
import unittest
from pathlib import Path

MODEL = Path(__file__).resolve().parents[1] / "model" / "reader.py"


def load_model():
    spec = importlib.util.spec_from_file_location("reader", MODEL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Model(unittest.TestCase):
    model = load_model()

    def test_as_designed_no_execution_is_wrong(self):
        ended, wrong = self.model.check("")
        self.assertGreater(ended, 0)
        self.assertEqual(wrong, 0)

    def test_without_any_one_check_fence_or_order_some_are(self):
        for without in self.model.WITHOUT:
            with self.subTest(without=without):
                self.assertGreater(self.model.check(without)[1], 0)

    def test_what_is_said_to_be_needless_is(self):
        for without in self.model.NEEDLESS:
            with self.subTest(without=without):
                self.assertEqual(self.model.check(without)[1], 0)
