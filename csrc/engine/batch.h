// Turns a scheduled step into the flat arrays that the model reads.
#pragma once
#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "engine/scheduler.h"
#include "model/image_rows.h"

namespace lynx_rt {

// Owns the arrays behind a BatchView. They are reused from step to step.
class Batch {
 public:
  // first_image_rope_row: Decoder's; image_columns: of a row of an image's output.
  explicit Batch(int64_t first_image_rope_row = 0, int64_t image_columns = 0)
      : first_image_rope_row_(first_image_rope_row), image_columns_(image_columns) {}

  // Writes a step's arrays; slots and block tables of the first page group come first, then those of Request::windows. The view is valid
  // until the next call.
  const BatchView& build(const ScheduledStep& step, int64_t block_size);
  // Writes the arrays of a single sequence: consecutive tokens from `position` on, in the pages `blocks`, with the states of slot 0.
  const BatchView& build_single(std::span<const int32_t> tokens, int64_t position, std::span<const int32_t> blocks,
                                int64_t block_size, std::span<const RequestImage> images = {});
  const ImageRows& image_rows() const { return image_rows_; }  // of the batch built last
  int64_t first_row(size_t request) const { return query_start_[request]; }
  // Returns the number of rows in the step of the request's isolation group.
  int64_t group_rows(size_t request) const { return rows_of_group_[size_t(group_of_request_[request])]; }

 private:
  void clear(int64_t max_blocks);
  void add_sequence(std::span<const int32_t> tokens, int64_t position, std::span<const int32_t> blocks, int64_t block_size,
                    bool exact, int32_t state_slot, std::span<const RequestImage> images);
  // Adds the rope rows of `count` tokens from `position` on, and those of them that stand for images, whose outputs are there.
  void add_rope_rows(std::span<const RequestImage> images, int64_t position, int64_t count);
  // Adds the slots of `count` rows from `position` on, and a row of block tables.
  void add_pages(std::span<const int32_t> blocks, int64_t position, int64_t count, int64_t block_size);
  void number_groups(const ScheduledStep& step);
  void finish(Phase phase);

  int64_t first_image_rope_row_, image_columns_;
  ImageRows image_rows_;
  bool has_images_ = false;  // some sequence of the batch has
  std::vector<int32_t> token_ids_, positions_, rope_rows_, query_start_, block_tables_, state_slots_;
  std::vector<int64_t> slots_;
  std::vector<uint8_t> exact_;
  std::vector<int32_t> group_of_request_, groups_;  // groups_: of each row
  std::vector<int64_t> rows_of_group_;
  BatchView view_;
};

}  // namespace lynx_rt
