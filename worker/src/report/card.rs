//! A student's model card: what it is, how to use it, and the measured table, as Markdown with the front matter that
//! model hubs read.

use super::data::ReportData;
use super::table::render_table;

/// The card of the student `name`.
pub fn model_card(data: &ReportData, name: &str) -> String {
    let row = data.rows.iter().find(|row| row.name == name);
    let kind = row.map_or("student", |row| row.kind.name());
    let dim = row.and_then(|row| row.dim).map_or_else(String::new, |dim| format!(" of {dim} dimensions"));
    let bytes = row.map_or(0.0, |row| row.bytes_per_passage);
    let table = render_table(data);
    format!(
        r#"---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags:
- sentence-transformers
- feature-extraction
- dense-retrieval
- distillation
---

# {name}

A {kind} student{dim}, {bytes} bytes a passage, distilled by Retort in the job `{job}` ({title}).

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("PATH_TO_THIS_FOLDER")
questions = model.encode_query(["who wrote it?"])
passages = model.encode_document(["A passage, as \"title text\"."])
scores = questions @ passages.T
```

Prompts and longest texts of each side stand in `config_sentence_transformers.json` and `sentence_bert_config.json`;
a passage is its title, a space and its text.

## Measured

Beside its teacher and the other rows of the job, on the job's own questions:

```text
{table}```

Spec digest `{digest}`.
"#,
        job = data.job,
        title = data.name,
        digest = data.spec_digest,
    )
}
