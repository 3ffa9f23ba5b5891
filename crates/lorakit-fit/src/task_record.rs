//! What a record keeps of a task.

use lorakit_adapter::TaskRecord;
use lorakit_format::hash_sketch::HashSketch;
use lorakit_task::{Split, Task};

/// The record of a task: what finds it again, and what tells it from another.
pub fn task_record(task: &Task) -> TaskRecord {
    TaskRecord {
        name: task.name.clone(),
        path: task.path.display().to_string(),
        sha256: task.sha256().to_owned(),
        split_seed: task.split_seed,
        train_rows: HashSketch::new(task.row_hashes(Split::Train)).to_text(),
        columns: task.columns.as_map().clone(),
    }
}
