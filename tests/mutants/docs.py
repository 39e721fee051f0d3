"""Faults in the site, in the list of errors, in how pages are checked, and in completion."""

from tests.mutants.mutant import Mutant

SITE = "tests/test_site.py"
ERRORS = "tests/test_errors_doc.py"
PAGES = "tests/test_newcomer_pages.py"
KEYS = "tests/rt/test_completion.py"
NOTEBOOK = "tests/test_notebook.py"

MUTANTS = (
    Mutant(
        "fonts from the network",
        "mkdocs.yml",
        "  font: false # those of the reader's system; others would come from the network\n",
        "",
        f"{SITE}::test_no_page_loads_anything_from_elsewhere",
    ),
    Mutant(
        "a site that is built in spite of broken links",
        "mkdocs.yml",
        "strict: true",
        "strict: false",
        f"{SITE}::test_a_broken_link_or_a_forgotten_page_stops_the_build",
    ),
    Mutant(
        "a page that the navigation forgets",
        "mkdocs.yml",
        "      - errors.md\n",
        "",
        f"{SITE}::test_every_page_is_built_and_in_the_navigation",
    ),
    Mutant(
        "links to places of a page unchecked",
        "mkdocs.yml",
        "  anchors: warn\n",
        "",
        f"{SITE}::test_a_broken_link_or_a_forgotten_page_stops_the_build",
    ),
    Mutant(
        "programs of the site published with it",
        "mkdocs.yml",
        'exclude_docs: "*.py"\n',
        "",
        f"{SITE}::test_pictures_diagrams_and_the_notebook_are_in_the_site",
    ),
    Mutant(
        "a style sheet that asks another host",
        "docs/site.css",
        ".md-grid {",
        '@import "https://example.org/fonts.css";\n.md-grid {',
        f"{SITE}::test_style_sheets_load_nothing_from_elsewhere",
    ),
    Mutant(
        "diagrams left to the browser",
        "docs/site_hooks.py",
        "return FENCE.sub(lambda block: diagram(block[1]), markdown)",
        "return markdown",
        f"{SITE}::test_pictures_diagrams_and_the_notebook_are_in_the_site",
    ),
    Mutant(
        "a site without search",
        "mkdocs.yml",
        "plugins: [search]",
        "plugins: []",
        f"{SITE}::test_the_site_can_be_searched",
    ),
    Mutant(
        "a code that takes a number in use",
        "tadiff_rt/request.py",
        '"TD3067", f"{option} needs a value"',
        '"TD3001", f"{option} needs a value"',
        f"{ERRORS}::test_a_code_has_one_class_of_exit_and_one_meaning",
    ),
    Mutant(
        "a message that the page does not know",
        "tadiff_rt/slices.py",
        "slices with tumour are asked for and not every source session has a mask",
        "not every session has a mask",
        f"{ERRORS}::test_the_committed_tables_are_those_of_the_source",
    ),
    Mutant(
        "messages of the other branch told as this one's",
        "tests/raised_errors.py",
        "(to_first[node] in node.body) != (to_second[node] in node.body)",
        "to_first[node] is to_second[node]",
        f"{ERRORS}::test_codes_and_messages_are_followed_to_where_they_are_given",
    ),
    Mutant(
        "a later message told as this one's",
        "tests/raised_errors.py",
        "or node.lineno >= name.lineno",
        "or node.lineno < 0",
        f"{ERRORS}::test_codes_and_messages_are_followed_to_where_they_are_given",
    ),
    Mutant(
        "a code given by name is not seen",
        "tests/raised_errors.py",
        "                given |= {k.arg: k.value for k in caller.keywords if k.arg}\n",
        "",
        f"{ERRORS}::test_codes_and_messages_are_followed_to_where_they_are_given",
    ),
    Mutant(
        "another exit code than the page says",
        "tadiff_rt/errors.py",
        "    exit_code = 7\n",
        "    exit_code = 9\n",
        f"{ERRORS}::test_exit_codes_of_the_table_are_those_of_the_classes",
    ),
    Mutant(
        "any output taken for the one shown",
        "tests/console.py",
        "masked(shown[0]) == masked(printed[0])",
        "bool(masked(shown[0]))",
        f"{PAGES}::test_lines_are_compared_without_their_numbers",
    ),
    Mutant(
        "lines behind those shown ignored",
        "tests/console.py",
        "        return not printed\n",
        "        return True\n",
        f"{PAGES}::test_lines_are_compared_without_their_numbers",
    ),
    Mutant(
        "names of sessions taken for numbers",
        "tests/console.py",
        "(?<![A-Za-z]-)",
        "",
        f"{PAGES}::test_numbers_are_masked_and_names_are_not",
    ),
    Mutant(
        "failures of a Python session swallowed",
        "tests/console.py",
        "    yield from said\n",
        "    yield from said[1:]\n",
        f"{PAGES}::test_a_session_of_python_that_prints_something_else_is_told",
    ),
    Mutant(
        "a label with another meaning on the page",
        "docs/inputs.md",
        "| 1 necrosis, 2 oedema, 4 enhancing tumour |",
        "| 1 necrosis, 2 oedema, 3 enhancing tumour |",
        f"{PAGES}::test_every_convention_of_labels_is_in_the_table_of_inputs",
    ),
    Mutant(
        "an option that is called otherwise",
        "docs/inputs.md",
        "| `--rebase-days` |",
        "| `--rebase` |",
        f"{PAGES}::test_options_in_the_prose_are_those_of_predict",
    ),
    Mutant(
        "a column that nobody explains",
        "docs/results_folder.md",
        "| `pairwise_dice` | expected",
        "| expected",
        f"{PAGES}::test_every_column_of_the_volumes_has_a_row",
    ),
    Mutant(
        "a notebook with outputs",
        "docs/quickstart.ipynb",
        '   "id": "cell-1",\n   "metadata": {},\n   "outputs": [],',
        '   "id": "cell-1",\n   "metadata": {},\n   "outputs": [\n    {\n'
        '     "name": "stdout",\n     "output_type": "stream",\n     "text": "x"\n    }\n   ],',
        f"{NOTEBOOK}::test_no_output_and_no_run_is_kept",
    ),
    Mutant(
        "a shell that asks gets the help",
        "tadiff_rt/console.py",
        "if not arguments and not completing:",
        "if not arguments:",
        f"{KEYS}::test_commands",
    ),
    Mutant(
        "a convention of labels that the tab key does not know",
        "tadiff_rt/cli/predict.py",
        '"published", "brats2021", "brats2023", "brats2024", "hdglio", "binary"\n',
        '"published", "brats2021", "brats2023", "brats2024", "hdglio"\n',
        f"{KEYS}::test_values_of_treatments_and_labels_are_all_there_are",
    ),
    Mutant(
        "a treatment that the tab key does not know",
        "tadiff_rt/cli/predict.py",
        'autocompletion=one_of("CRT", "TMZ", "none")',
        'autocompletion=one_of("CRT", "TMZ")',
        f"{KEYS}::test_values_of_treatments_and_labels_are_all_there_are",
    ),
)
