"""Which items of a data set to fine-tune on? `interp filter` and its parts: `pipeline` selects, `page` shows."""

from interp.filtering.page import filter_file as filter_file
from interp.filtering.pipeline import FilterConfig as FilterConfig
from interp.filtering.pipeline import Filtered as Filtered
from interp.filtering.pipeline import run_filter as run_filter
