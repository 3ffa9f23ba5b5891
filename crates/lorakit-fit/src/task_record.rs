//! What a record keeps of a task, and the chat template that its rows go through.

use lorakit_adapter::TaskRecord;
use lorakit_format::hash_sketch::HashSketch;
use lorakit_task::{Split, Task, Tokenizer};

/// The record of a task: what finds it again, and what tells it from another.
pub fn task_record(task: &Task) -> TaskRecord {
    TaskRecord {
        name: task.name.clone(),
        path: task.path.display().to_string(),
        sha256: task.sha256().to_owned(),
        split_seed: task.split_seed,
        train_rows: HashSketch::new(task.row_hashes(Split::Train)).to_text(),
        columns: task.columns.as_map().clone(),
        chat_template: None,
    }
}

/// The record of a task whose rows became tokens by `tokenizer`, with the chat template that they went through.
pub fn encoded_task_record(task: &Task, tokenizer: &Tokenizer) -> TaskRecord {
    TaskRecord { chat_template: chat_template_of(task, tokenizer), ..task_record(task) }
}

/// The SHA-256 of the chat template that a task's rows go through; None if they go through none.
pub fn chat_template_of(task: &Task, tokenizer: &Tokenizer) -> Option<String> {
    let rendered = tokenizer.encoding().chat || task.has_conversations();
    let template = rendered.then(|| tokenizer.chat_template().ok()).flatten();
    template.map(|template| template.sha256().to_owned())
}
