// One row on its way through the chain: edits, truncations, one draw, log-probabilities.
//
// A row is *dense* until the first truncation: read where it is, through divisions (temperatures) and patches (tokens
// with a value of their own). From then on it is a *list* of the tokens that are left. Only top-p on a flat row leaves
// a third form: every token of at least `from_`, a list of some below it, and values between `threshold_` and `from_`.
#pragma once

#include <vector>

#include "boundary.h"
#include "patches.h"
#include "sampling.h"
#include "steps.h"
#include "tunesmith.h"
#include "warm.h"

// chain_edits.cpp: which values a step may have, in words too; what is wrong with its list, if anything; and the list
// of a row, which is its history where the step has none.
TS_WARM bool ts_fits(int32_t op, double value);
const char *ts_range(int32_t op);
bool ts_second_fits(int32_t op, int32_t column, double value);
const char *ts_second_range(int32_t op, int32_t column);
TS_WARM bool ts_names_tokens(int32_t op);
TS_WARM const char *ts_list_fault(const ts_step &step, int64_t batch);
const char *ts_watermark_fault(const ts_step &step, int64_t batch);  // chain_watermark.cpp
TS_WARM_EDITS const int64_t *ts_listed(const ts_sample_args &args, const ts_step &step, int64_t row, int64_t *count);

// What the steps of a call have in common for all rows.
struct ChainPlan {
  TS_WARM explicit ChainPlan(const ts_sample_args &args);
  int32_t temperatures = 0;
  bool patches = false;           // a step edits or bans single tokens
  bool history = false;           // ... those of the history
  bool raw_differs = false;       // the dense row is not the row as given
  bool top_p_first = false;       // a temperature at most, then top-p, and no log-probability that takes the whole mass
  bool drawn_only = false;        // ... then nothing, and a draw is all that is asked for
  bool in_line;                   // see ts_reads_in_line
  bool in_order = true;           // one thread runs all rows, one after the other
  bool processed_differs = false;  // an edit comes after a truncation, or the dense row lacks tokens
  int bits;
  double scale;
};

// Divisors that estimates are good for.
inline bool ts_gentle(float divisor) { return divisor >= 1e-4f && divisor <= 1e4f; }

class ChainRow {
 public:
  TS_WARM void run(const ts_sample_args &args, const ChainPlan &plan, const TsSampling &kernels, int64_t row);

 private:
  enum Form { kDense, kList, kAbove };

  TS_WARM void begin();
  TS_WARM_EDITS void gather();
  TS_WARM_EDITS void load_patches();
  void give_up();
  TS_WARM void look_at(float max);
  TS_WARM void edit(const ts_step &step, float value);
  TS_WARM_EDITS void penalise(float penalty);
  TS_WARM void remax();
  void touch(const ts_step &step);
  void edit_tokens(const ts_step &step);
  void remove(const ts_step &step);
  void ban(const ts_step &step);
  void list_chosen();
  void hide(const int32_t *words, int64_t count);
  void show_marks();
  void hide_above(float z);
  void likely(const ts_step &step, double value);
  void top_n_sigma(double n);
  void typical(double mass, double least);
  void top_h(double h, double candidates);
  void xtc(double threshold);
  double mass_of_row();
  double mean_depth();
  void list_all();
  template <typename Take>
  void over_values(Take take);
  int64_t place_of(int32_t id);
  bool passed_over(int64_t id) const { return view_.marks && (view_.marks[id / kLanes] >> (id % kLanes) & 1); }
  template <typename Stays>
  void filter(Stays stays) {
    int64_t left = 0;
    for (int64_t i = 0; i < n_; ++i) {
      if (!stays(i)) continue;
      ids_[left] = ids_[i];
      z_[left++] = z_[i];
    }
    n_ = left;
    list_weighed_ = false;
  }
  TS_WARM void cool(float divisor, float processed_divisor);
  void dynamic_temperature(const ts_step &step, double low);
  void watermark(const ts_step &step, float delta);
  bool processed_asked() const { return args_->logp_processed || args_->top_processed_ids; }
  void set_apart();
  float *apart();
  void list_apart();
  void top_k_low(double k);
  void top_p_ties(const ts_step &step, double p);
  void mirostat(const ts_step &step, double bits);
  void keep_by_rule(float threshold, uint64_t ties);
  float lowest();
  TS_WARM void top_k(double k);
  TS_WARM_LISTS void top_p(double p);
  TS_WARM_LISTS void min_p(double p);
  TS_WARM_TOP_P void dense_top_p(double p);
  TS_WARM void finish();

  TS_WARM const TsRow &rest();
  TS_WARM float value_of(float x, int32_t divisors) const;
  TS_WARM float least(float z) const;
  TS_WARM float dense_max(bool processed);
  TS_WARM int64_t merge_patches(int64_t n, float from);
  TS_WARM void list_from(float from, float below);
  void list_whole();
  TS_WARM uint64_t weigh_list();
  uint64_t patched_weights(float max, float below);
  uint64_t dense_total();
  struct Bracket {
    float from, above;
  };
  TS_WARM_TOP_P bool guess_by_lanes(double p, Bracket *bracket);
  TS_APART Bracket guess(double dropped, int attempt);
  TS_WARM_TOP_P double doubt_of(double mass) const;
  bool rough_below(float from, uint64_t *low, uint64_t *high);
  TS_WARM_TOP_P bool rough_rest(uint64_t *low, uint64_t *high);
  TS_WARM_TOP_P bool quick_top_p(double p);
  TS_WARM_TOP_P bool settle(double p, uint64_t low, uint64_t high);
  bool narrow(Bracket bracket, uint64_t total, uint64_t limit);
  bool find(Bracket bracket, uint64_t above, uint64_t total, uint64_t limit);
  uint64_t list_patches(float from);
  bool shallow_top_p(double p, Bracket bracket);
  bool find_between(Bracket bracket, uint64_t above, uint64_t between, uint64_t least, uint64_t most, float smallest);
  struct FlatDraw;
  TS_WARM_FLAT bool flat_row(double p);
  TS_WARM_FLAT bool guess_flat(double dropped, TsPowers *powers, float *from, float *below, double *enough);
  TS_WARM_FLAT bool flat_draw(double p, const TsPowers &powers, float from, float below, TsFlat *flat);
  TS_WARM_FLAT int64_t flat_token(const TsFlat &flat, const FlatDraw &draw, int64_t ties);
  TS_WARM_LISTS float boundary(uint64_t running, uint64_t limit, uint64_t *before);
  TS_WARM void keep_beyond(float threshold, uint64_t ties);
  TS_WARM float kth_of_lanes(int64_t k);
  TS_WARM int64_t draw();
  int64_t draw_in_block(int64_t block, uint64_t running, uint64_t target, uint64_t ties);
  int64_t first_maximum();
  float logp_raw(int64_t token);
  float logp_processed(int64_t token);
  void write_logits();
  uint64_t raw_total();
  uint64_t processed_total(float max);
  void tops();
  void top_of(int64_t *ids, float *logps, float max, uint64_t total);

  const ts_sample_args *args_ = nullptr;
  const ChainPlan *plan_ = nullptr;
  const TsSampling *kernels_ = nullptr;
  int64_t row_ = 0, vocab_ = 0;
  const void *source_ = nullptr;

  Form form_ = kDense;
  uint8_t status_ = TS_ROW_OK;
  float max_ = 0;        // of what is left
  float rest_max_ = 0;   // largest x that is neither patched nor hidden
  float whole_rest_max_ = 0;  // the same with what is hidden
  float raw_max_ = 0;
  std::vector<float> divisors_;  // of the whole chain; the dense row uses the first so many
  int32_t dense_divisors_ = 0, divisors_seen_ = 0;
  TsRow view_ = {};
  Patches patches_;
  Buffer<uint64_t> merged_;        // patches on their way into the list
  int64_t history_patches_ = 0;    // the first so many patches are those of the history
  struct Touch {
    int32_t stamp = 0;  // the last step that named the patch
    float sum = 0;      // of its amounts there
  };
  std::vector<Touch> stamps_;      // of every patch
  std::vector<int32_t> touched_;   // patches, by the step at work
  std::vector<int32_t> chosen_;
  int32_t stamp_ = 0;
  Buffer<uint16_t> hidden_;        // tokens that a mask removed from the dense row, and the patched ones
  Buffer<uint8_t> hidden_flags_;
  Buffer<float> lanes_;

  double scan_mass_ = -1;     // of the dense row that the first top-p sees, nearly; below 0 where it is not known
  bool total_known_ = false;  // dense_total_ belongs to the dense row as it is; so does blocks_ while form_ is kDense
  uint64_t dense_total_ = 0;
  Buffer<uint64_t> blocks_;   // of what is kept outside the list (kDense and kAbove)
  float from_ = 0;            // kAbove: every token of at least this is kept; it may be in the list too if it is patched
  float threshold_ = 0;       // kAbove: the lowest value kept ...
  uint64_t ties_ = 0;         // ... of which so many with the lowest ids are not
  uint64_t kept_ = 0;         // the weights' sum of what is left
  bool between_known_ = false;  // tokens below from_ that are not patched are in between_, else in the list
  Buffer<float> between_;     // values in ascending order of ids, those below threshold_ too ...
  Buffer<uint64_t> between_w_;  // ... and their weights
  Buffer<int64_t> between_ends_;  // how many there are up to the end of each block

  Buffer<int32_t> ids_;  // ascending
  Buffer<float> z_, e_;
  Buffer<uint64_t> w_;
  Buffer<Weighed> weighed_;
  int64_t n_ = 0;
  int32_t rule_ = TS_TIES_HIGH;  // of the top-p or top-k at work, and of the one that left the row kAbove
  bool apart_ = false;           // the processed row is apart_z_, no longer the row as given seen through divisors
  Buffer<float> apart_z_;
  Buffer<uint16_t> green_;
  bool list_weighed_ = false;
  uint64_t list_total_ = 0;
  bool raw_total_known_ = false, processed_total_known_ = false;
  uint64_t raw_total_ = 0, processed_total_ = 0;
  bool hinted_ = false;  // the boundary of top-p is in hint_, if no estimate is wrong
  Bracket hint_ = {0, 0};
  int64_t flat_token_ = -1;  // what was drawn by estimates, if it was
  Buffer<double> flat_sums_;
  Buffer<int32_t> flat_spans_;
  Buffer<float> flat_u_;
  Buffer<float> select_, before_z_, lane_e_, sample_x_, sample_e_;
};
