"""The bugs that are planted, and for each of them the test that has to notice."""

from __future__ import annotations

from dataclasses import dataclass

HERE = "tests/crash"
POWER_CUT = f"{HERE}/test_power_cuts.py::test_a_power_cut_breaks_no_promise"
CALL = f"{HERE}/test_calls.py::test_a_call_that_fails_breaks_no_promise"
DAMAGE = f"{HERE}/test_damage.py::test_damage_is_found_or_does_no_harm"
FUZZ = f"{HERE}/test_fuzz.py::test_any_bytes_are_read_as_what_they_say_or_refused"
THREADS = f"{HERE}/test_threads.py::test_threads_at_once_break_no_promise"


@dataclass(frozen=True)
class Bug:
    """A bug: what is wrong in words, how to plant it, and the test that has to notice."""

    name: str
    words: str
    module: str
    old: str
    new: str
    test: str

    def plant(self, source: str) -> str:
        """Return the source of the module with the bug in it."""
        found = source.count(self.old)
        if found != 1:
            raise LookupError(
                f"{self.name}: {found} places in {self.module}.py, not one"
            )
        return source.replace(self.old, self.new)


def power_cut(case: str) -> str:
    """Return the name of a test that cuts the power."""
    return f"{POWER_CUT}[{case}]"


def call(case: str) -> str:
    """Return the name of a test that lets calls fail."""
    return f"{CALL}[{case}]"


def damage(case: str) -> str:
    """Return the name of a test that damages files."""
    return f"{DAMAGE}[{case}]"


def fuzz(case: str) -> str:
    """Return the name of a test that gives bytes of any kind to the parsers."""
    return f"{FUZZ}[{case}]"


def threads(case: str) -> str:
    """Return the name of a test in which threads do everything at once."""
    return f"{THREADS}[{case}]"


# --- an fsync that is left out ------------------------------------------------------------

SYNCS = [
    Bug(
        "sync-does-nothing",
        "`sync` returns without an fsync",
        "store",
        "                active.sync()\n",
        "                pass\n",
        power_cut("puts os 512"),
    ),
    Bug(
        "header-not-synced",
        "a new segment's header is not synced",
        "segment",
        "            filesystem.sync(file)\n            filesystem.sync_directory(directory)\n",
        "            filesystem.sync_directory(directory)\n",
        power_cut("founding os 512"),
    ),
    Bug(
        "segment-name-not-synced",
        "the directory is not synced after a segment was made",
        "segment",
        "            filesystem.sync(file)\n            filesystem.sync_directory(directory)\n",
        "            filesystem.sync(file)\n",
        power_cut("rotation os 512"),
    ),
    Bug(
        "seal-not-synced",
        "a full segment is sealed without an fsync",
        "segment",
        "        self.cut(self.size)\n        self.sync()\n",
        "        self.cut(self.size)\n",
        power_cut("rotation os 512"),
    ),
    Bug(
        "manifest-not-synced",
        "the new manifest is renamed before it is on the disk",
        "manifest",
        "        filesystem.write(file, manifest.encode(), 0)\n        filesystem.sync(file)\n",
        "        filesystem.write(file, manifest.encode(), 0)\n",
        power_cut("rotation os 512"),
    ),
    Bug(
        "rename-not-synced",
        "the directory is not synced after the manifest was renamed",
        "manifest",
        '{directory}/{MANIFEST}")\n    filesystem.sync_directory(directory)\n',
        '{directory}/{MANIFEST}")\n',
        power_cut("rotation os 512"),
    ),
    Bug(
        "store-name-not-synced",
        "the directory of a new store is not synced into its parent",
        "filesystem",
        '        self.sync_directory(os.path.dirname(path.rstrip("/")) or ".")\n',
        "",
        "tests/test_pitfalls_writing.py::"
        "test_pitfall_14_a_new_stores_directory_is_durable_in_its_parent",
    ),
    Bug(
        "log-not-synced-before-compaction",
        "a compaction gives up records that were overwritten by some not yet on the disk",
        "store",
        "        self._sync_through(self._sequence)\n        with self._syncing:\n",
        "        with self._syncing:\n",
        power_cut("compaction os 512"),
    ),
    Bug(
        "synced-and-not-noted",
        "a compaction does not note how far the log was synced that made records dead",
        "store",
        "        return manifest.advanced(manifest.next_number, *safe)\n",
        "        return manifest\n",
        "tests/test_pitfalls_compaction.py::"
        "test_a_record_that_made_older_ones_dead_is_never_a_torn_tail",
    ),
    Bug(
        "merged-not-synced",
        "the segments that a compaction wrote are not synced",
        "compaction",
        "    for segment in result.results:\n        segment.seal()\n",
        "",
        power_cut("compaction os 512"),
    ),
    Bug(
        "close-not-synced",
        "`close` does not sync the log",
        "store",
        "        end = self._seal()\n        self._mark.write(",
        "        end = self._active.describe()\n        self._mark.write(",
        power_cut("puts os 512"),
    ),
    Bug(
        "recovery-not-synced",
        "recovery builds on records that are in the cache and not on the disk",
        "recovery",
        "    if writable:\n        last.rewrite(safe)\n",
        "",
        power_cut("reopening os 512"),
    ),
    Bug(
        "recovery-synced-only",
        "recovery syncs what it accepted, and does not write it anew",
        "segment",
        "            self._filesystem.write(self._file, piece, offset)\n"
        "            offset += len(piece)\n        self.sync()\n",
        "            offset += len(piece)\n        self.sync()\n",
        call("puts os EIO"),
    ),
]

# --- steps in another order ---------------------------------------------------------------

ORDER = [
    Bug(
        "mark-before-fsync",
        "the mark is moved before the fsync that it speaks of",
        "store",
        "            try:\n                active.sync()\n",
        "            try:\n"
        "                self._mark.write(reached)\n"
        "                active.sync()\n",
        power_cut("puts os 512"),
    ),
    Bug(
        "manifest-before-fsync-of-the-full",
        "the manifest names a new segment before the full one is on the disk",
        "store",
        "        sealed = self._seal()\n",
        "        sealed = self._active.describe()\n",
        power_cut("rotation os 512"),
    ),
    Bug(
        "removed-before-commit",
        "a compaction removes the old segments before the manifest leaves them out",
        "store",
        "        numbers = {segment.number for segment in sources}\n"
        "        with self._changing_files:\n",
        "        numbers = {segment.number for segment in sources}\n        self._remove(sources)\n"
        "        with self._changing_files:\n",
        power_cut("compaction os 512"),
    ),
    Bug(
        "manifest-in-place",
        "the manifest is written over the old one, in place",
        "manifest",
        '    filesystem.rename(f"{directory}/{MANIFEST_ASIDE}", f"{directory}/{MANIFEST}")\n',
        '    aside = filesystem.open(f"{directory}/{MANIFEST_ASIDE}")\n'
        "    raw = filesystem.read(aside, filesystem.size(aside), 0)\n"
        '    filesystem.remove(f"{directory}/{MANIFEST_ASIDE}")\n'
        "    try:\n"
        '        file = filesystem.open(f"{directory}/{MANIFEST}", writable=True)\n'
        "    except FileNotFoundError:\n"
        '        file = filesystem.create(f"{directory}/{MANIFEST}")\n'
        "    filesystem.write(file, raw, 0)\n"
        "    filesystem.truncate(file, len(raw))\n"
        "    filesystem.sync(file)\n",
        power_cut("rotation os 512"),
    ),
    Bug(
        "index-before-write",
        "the index learns of a put before it is written",
        "store",
        "        location = pack(active.number, self._write(active, raw), len(raw))\n",
        "        location = pack(active.number, active.size, len(raw))\n"
        "        self._index[key] = location\n"
        "        self._write(active, raw)\n",
        call("puts os ENOSPC"),
    ),
]

# --- what recovery believes ---------------------------------------------------------------

RECOVERY = [
    Bug(
        "half-a-batch",
        "recovery applies each record at once, and so a half batch",
        "recovery",
        "            if entry.continued:\n                continue\n",
        "",
        power_cut("batches os 512"),
    ),
    Bug(
        "mark-ignored",
        "recovery ignores the mark: damage below it passes for a torn tail",
        "recovery",
        "    if outcome.end < safe:\n",
        "    if outcome.end < HEADER_BYTES:\n",
        power_cut("puts os 512"),
    ),
    Bug(
        "note-ignored",
        "recovery ignores how much of the log is safe by the manifest",
        "recovery",
        "    safe = max(active.length, synced_length(last, synced))\n",
        "    safe = synced_length(last, synced)\n",
        power_cut("compaction os 512"),
    ),
    Bug(
        "torn-tail-refused",
        "a torn tail is taken for damage",
        "recovery",
        "    if outcome.end < safe:\n",
        "    if outcome.end < safe or outcome.trouble:\n",
        power_cut("puts os 512"),
    ),
    Bug(
        "sealed-may-be-torn",
        "a sealed segment may end early",
        "recovery",
        "    if outcome.trouble is not None:\n        raise outcome.trouble\n    if segment.size",
        "    if segment.size",
        damage("closed cut"),
    ),
    Bug(
        "sealed-length-ignored",
        "the length of a sealed segment is not compared",
        "recovery",
        "    if segment.size != description.length:\n",
        "    if segment.size > description.length:\n",
        damage("closed cut"),
    ),
    Bug(
        "tail-not-cut",
        "a torn tail stays where it is, and new records are written over it",
        "recovery",
        "    segment.cut(offset)\n",
        "    segment.size = offset\n",
        power_cut("recoveries os 512"),
    ),
    Bug(
        "kept-not-synced",
        "what is kept of a torn tail is not synced",
        "recovery",
        "    filesystem.sync(file)\n    return path\n",
        "    return path\n",
        power_cut("recoveries os 512"),
    ),
    Bug(
        "kept-name-not-synced",
        "the directory is not synced after a torn tail was kept",
        "recovery",
        "    filesystem.sync_directory(directory)\n    segment.cut(offset)\n",
        "    segment.cut(offset)\n",
        power_cut("recoveries os 512"),
    ),
    Bug(
        "reader-keeps",
        "a reader keeps a torn tail aside, and so changes the disk",
        "recovery",
        "    if not writable:\n        segment.size = offset\n",
        "    if not writable:\n"
        "        keep_aside(filesystem, segment, offset)\n"
        "        segment.size = offset\n",
        power_cut("puts os 512"),
    ),
    Bug(
        "no-gap",
        "after a crash the sequence numbers go on without a gap",
        "store",
        "        recovered.sequence += LOST_AT_MOST\n",
        "",
        power_cut("ghosts os 32"),
    ),
    Bug(
        "leftovers-stay",
        "what an interrupted change left behind is never removed",
        "store",
        "    for path in left_behind:\n        filesystem.remove(path)\n",
        "",
        power_cut("rotation os 512"),
    ),
    Bug(
        "eio-taken-for-damage",
        "a disk that can't be read is taken for a torn tail",
        "recovery",
        "    except CorruptionError as error:\n        result.trouble = error\n",
        "    except (CorruptionError, OSError) as error:\n"
        "        result.trouble = CorruptionError(segment.path, result.end, str(error))\n",
        call("reopening os EIO"),
    ),
    Bug(
        "place-decides",
        "of two records of a key the one that stands later wins, whatever its number",
        "recovery",
        "        self._records[entry.key] = max(known, entry.sequence << SEQUENCE_SHIFT | place)\n",
        "        self._records[entry.key] = known & 0 | entry.sequence << SEQUENCE_SHIFT | place\n",
        power_cut("meanwhile os 512"),
    ),
    Bug(
        "lost-record-in-the-place-of-a-new-one",
        "a record that was lost before passes for the new one in its place",
        "recovery",
        "            if entry.offset >= old_until and entry.sequence <= sequence:\n"
        "                raise CorruptionError(segment.path, entry.offset, LOST_BEFORE)\n",
        "",
        power_cut("ghosts os 32"),
    ),
    Bug(
        "gap-without-its-place",
        "after a crash the manifest notes the gap, and not where the log goes on",
        "manifest",
        "        return replace(self, next_number=next_number, sequence=sequence, active=active)\n",
        "        return replace(self, next_number=next_number, sequence=sequence)\n",
        power_cut("reopening os 512"),
    ),
    Bug(
        "half-made-is-foreign",
        "a store whose making was interrupted is taken for damage",
        "manifest",
        "    if MANIFEST in names or unfinished(filesystem, directory, names):\n",
        "    if MANIFEST in names or not names:\n",
        power_cut("founding os 512"),
    ),
    Bug(
        "half-made-is-in-the-way",
        "the first segment of a making that was interrupted stays in the way of the next",
        "manifest",
        '        filesystem.remove(f"{directory}/{segment_name(1)}")\n',
        "        pass\n",
        power_cut("founding os 512"),
    ),
    Bug(
        "staged-is-in-the-way",
        "a manifest that was written aside before a crash stays in the way of the next",
        "manifest",
        "    if filesystem.exists(path):\n        filesystem.remove(path)\n",
        "",
        power_cut("rotation os 512"),
    ),
    Bug(
        "sequence-from-the-log-alone",
        "sequence numbers go on from the records found, whatever the manifest says",
        "store",
        "    recovered.sequence = max(recovered.sequence, manifest.sequence)\n",
        "",
        power_cut("ghosts os 32"),
    ),
    Bug(
        "mark-says-closed",
        "the mark says of a store in use that it was closed",
        "mark",
        "*mark.synced, mark.closed)",
        "*mark.synced, True)",
        power_cut("ghosts os 32"),
    ),
    Bug(
        "mark-of-another-segment",
        "a mark that speaks of the segment before is believed of the one being written",
        "recovery",
        "    if synced is None or synced[:2] != segment.describe()[:2]:\n",
        "    if synced is None:\n",
        power_cut("rotation os 512"),
    ),
    Bug(
        "seed-not-compared",
        "a segment of another store passes for one of ours",
        "recovery",
        "    if segment.seed != description.seed:\n",
        "    if segment.seed < 0:\n",
        damage("closed foreign"),
    ),
]

# --- compaction ---------------------------------------------------------------------------

COMPACTION = [
    Bug(
        "tombstones-dropped",
        "a compaction drops every tombstone",
        "compaction",
        "            old, live = 0, needed.get(entry.key) == entry.sequence\n",
        "            old, live = 0, False\n",
        power_cut("tombstones os 512"),
    ),
    Bug(
        "copy-gets-a-new-number",
        "a copied record gets a higher number, and wins over what came meanwhile",
        "compaction",
        "    raw = encode(kind, entry.sequence, entry.key, value, target.seed)\n",
        "    raw = encode(kind, entry.sequence + 99, entry.key, value, target.seed)\n",
        power_cut("meanwhile os 512"),
    ),
    Bug(
        "number-used-again",
        "the manifest of a compaction gives the numbers of its segments out again",
        "manifest",
        "            next_number=max("
        "[self.next_number, *(each.number + 1 for each in results)]),\n",
        "",
        power_cut("compaction os 512"),
    ),
    Bug(
        "index-moved-blindly",
        "a compaction turns the index to a copy though there is a newer record",
        "index",
        "        if self.get(key) == old:\n            self[key] = new\n",
        "        self[key] = new\n",
        power_cut("meanwhile os 512"),
    ),
    Bug(
        "compaction-leaves-its-half",
        "a compaction that fails leaves what it wrote",
        "store",
        "        except Exception:\n            self._remove(merged.results)\n            raise\n",
        "        except Exception:\n            raise\n",
        "tests/test_pitfalls_compaction.py::"
        "test_pitfall_36_a_full_disk_stops_the_compaction_and_nothing_else",
    ),
    Bug(
        "copy-keeps-the-batch",
        "a record copied out of a batch says that its batch goes on",
        "compaction",
        "    kind = DELETE if entry.deletes else PUT\n",
        "    kind = entry.kind\n",
        power_cut("meanwhile os 512"),
    ),
    Bug(
        "removed-under-a-reader",
        "a get whose record a compaction has moved does not look again",
        "store",
        "            return self[key]\n        return segment.value",
        '            return b""\n        return segment.value',
        "tests/test_store.py::test_a_get_that_meets_a_compaction_looks_again",
    ),
]

# --- writing ------------------------------------------------------------------------------

WRITING = [
    Bug(
        "short-write-taken-for-done",
        "a write that was taken in part counts as done",
        "segment",
        "            if written < len(raw):\n",
        "            if written < 0:\n",
        call("puts os short-by-one"),
    ),
    Bug(
        "failed-append-stays",
        "an append that failed leaves its bytes behind",
        "segment",
        "            self._cut_back(error)\n            raise\n",
        "            raise\n",
        "tests/test_store.py::test_a_failing_append_is_cut_back_and_the_next_one_works",
    ),
    Bug(
        "failed-append-not-noted",
        "a record stands where an append has failed, and the manifest does not note it",
        "store",
        "                self._note_the_end()\n",
        "                self._full = False\n",
        power_cut("shortages os 32"),
    ),
    Bug(
        "failed-append-closed",
        "a store closes as if no append had failed",
        "store",
        "closed=not self._append_failed())",
        "closed=True)",
        power_cut("shortages os 32"),
    ),
    Bug(
        "fsync-tried-again",
        "after an fsync that failed the store goes on, and the next fsync succeeds",
        "store",
        '                self._refuse("an fsync", error)\n                raise\n',
        "                raise\n",
        call("puts os EIO"),
    ),
    Bug(
        "open-keeps-the-lock",
        "an open that fails keeps the lock",
        "store",
        "        lock.release()  # now, and not when the last traceback is forgotten\n"
        "        raise\n",
        "        raise\n",
        call("founding os EIO"),
    ),
    Bug(
        "always-is-os",
        'with `sync="always"` a batch returns before it is on the disk',
        "store",
        "        sequence = self._log_batch(changes)\n"
        "        if self._sync_always:\n"
        "            self._sync_through(sequence)\n",
        "        self._log_batch(changes)\n",
        power_cut("batches always 512"),
    ),
    Bug(
        "put-always-is-os",
        'with `sync="always"` a put returns before it is on the disk',
        "store",
        "        sequence = self._log(PUT, key, value)\n        if self._sync_always:\n"
        "            self._sync_through(sequence)\n",
        "        self._log(PUT, key, value)\n",
        power_cut("puts always 512"),
    ),
    Bug(
        "delete-always-is-os",
        'with `sync="always"` a delete returns before it is on the disk',
        "store",
        '        sequence = self._log(DELETE, key, b"")\n        if self._sync_always:\n'
        "            self._sync_through(sequence)\n",
        '        self._log(DELETE, key, b"")\n',
        power_cut("deletes always 512"),
    ),
    Bug(
        "batch-not-marked",
        "the records of a batch do not say that it goes on",
        "store",
        " | (CONTINUED if left else 0)\n",
        " | (CONTINUED if left < 0 else 0)\n",
        power_cut("batches os 512"),
    ),
    Bug(
        "mark-fails-the-put",
        "a put fails because the mark can't be moved, though its record is on the disk",
        "store",
        "            self._mark.write(reached)\n        except OSError as error:\n",
        "            self._mark.write(reached)\n        except EOFError as error:\n",
        call("puts always EIO"),
    ),
    Bug(
        "seal-tried-again",
        "after an fsync of a full segment that failed the store goes on",
        "store",
        '            self._refuse("the fsync of a segment", error)\n',
        "",
        call("rotation os EIO"),
    ),
    Bug(
        "refusal-ignored",
        "a store that refuses writes still takes puts",
        "store",
        "            raise self._missing(key)\n"
        "        if self._refusal is not None:\n"
        "            raise self._refused()\n",
        "            raise self._missing(key)\n",
        "tests/test_store.py::"
        "test_a_failed_fsync_ends_the_writes_and_not_the_reads[fail_in_sync]",
    ),
    Bug(
        "compaction-not-refused",
        "a compaction ends as if all were well, though the store refuses writes by now",
        "store",
        "            if self._refusal is not None:  # of a write in another thread meanwhile\n"
        "                raise self._refused()\n",
        "",
        call("meanwhile always EIO"),
    ),
    Bug(
        "failed-batch-seen",
        "the keys of a batch leave the index before the batch is written",
        "store",
        "            places = self._append_run(present)\n",
        "            for key in present:\n"
        "                self._index.pop(key, None)\n"
        "            places = self._append_run(present)\n",
        "tests/test_store.py::test_a_batch_whose_write_fails_does_nothing",
    ),
    Bug(
        "batch-in-pieces",
        "a batch is written record by record, and not with one call",
        "store",
        '        self._write(active, b"".join(run))\n',
        "        for raw in run:\n            self._write(active, raw)\n",
        power_cut("batches os 512"),
    ),
    Bug(
        "put-without-the-lock",
        "two threads put at the same moment, and get the same place in the log",
        "store",
        "            with self._writing:\n"
        "                if not self._full:\n"
        "                    return self._append(kind, key, value)\n",
        "            if not self._full:\n"
        "                return self._append(kind, key, value)\n",
        threads("turns os 1"),
    ),
    Bug(
        "iteration-without-a-copy",
        "an iteration goes over the index itself, and not over a copy of it",
        "store",
        "            return Index(self._index), self._segments.copy()\n",
        "            return self._index, self._segments.copy()\n",
        "tests/test_store.py::"
        "test_an_iterator_sees_the_store_as_it_was_when_it_began[items-False]",
    ),
    Bug(
        "two-fsyncs-at-once",
        "two threads sync a file at once, and of a failure only one of them hears",
        "store",
        "        with self._syncing:\n            if self._synced >= sequence:\n",
        "        if True:\n            if self._synced >= sequence:\n",
        "tests/test_pitfalls_writing.py::"
        "test_pitfall_13_no_fsync_runs_beside_another_of_the_same_file",
    ),
    Bug(
        "second-writer",
        "a second process may open a store for writing",
        "filesystem",
        "            fcntl.flock(file.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "            pass\n",
        "tests/test_filesystem.py::"
        "test_a_lock_of_another_process_is_respected_until_it_dies",
    ),
    Bug(
        "child-writes",
        "a forked child may write to its parent's store",
        "store",
        "DISK.after_fork(_disown_all)\n",
        "",
        "tests/test_pitfalls_sharing.py::"
        "test_pitfall_39_a_forked_child_reads_and_never_writes",
    ),
]

# --- bytes --------------------------------------------------------------------------------

BYTES = [
    Bug(
        "checksum-not-verified",
        "a get does not verify the checksum",
        "segment",
        "        if crc32(raw, self.seed) != RESIDUE:\n"
        '            raise self._damage(offset, "the checksum does not match the record")\n'
        "        key_end",
        "        key_end",
        damage("closed live"),
    ),
    Bug(
        "numbers-need-not-rise",
        "a scan does not ask that sequence numbers rise",
        "segment",
        "            if entry.sequence <= newest:\n",
        "            if entry.sequence < 0:\n",
        "tests/test_segment.py::test_sequence_numbers_rise_or_it_is_damage",
    ),
    Bug(
        "length-believed",
        "a record's length is believed before it is compared with the file",
        "record",
        "    if head.length > available:\n",
        "    if head.length < 0:\n",
        "tests/test_pitfalls_format.py::"
        "test_pitfall_02_a_length_is_bound_by_what_is_left_in_the_file",
    ),
    Bug(
        "manifest-not-verified",
        "the manifest's checksum is not verified",
        "manifest",
        "    if version < 1 or crc32(raw) != RESIDUE:\n",
        "    if version < 1:\n",
        damage("closed bit"),
    ),
    Bug(
        "mark-not-verified",
        "the mark's checksum is not verified",
        "mark",
        "    if len(raw) != MARK_BYTES or crc32(raw) != RESIDUE:\n",
        "    if len(raw) != MARK_BYTES:\n",
        f"{HERE}/test_fuzz.py::"
        "test_a_file_of_the_corpus_is_read_or_refused_as_it_should_be[mark/flipped-bit]",
    ),
    Bug(
        "one-seed-for-all",
        "all segments have one seed, and an old record of another file passes",
        "segment",
        "        self.seed = seed\n",
        "        self.seed = 7\n",
        "tests/test_pitfalls_format.py::"
        "test_pitfall_05_a_record_of_another_file_stays_dead_behind_a_tear",
    ),
    Bug(
        "key-not-compared",
        "a get does not ask whether the record that it reads is of its key",
        "segment",
        "        if raw[HEAD.size : key_end] != key"
        " or HEAD.unpack_from(raw)[2] != len(key):\n"
        '            raise self._damage(offset, "a record of another key stands here")\n',
        "",
        "tests/test_segment.py::test_a_value_is_only_given_out_under_its_own_key",
    ),
    Bug(
        "count-believed",
        "the manifest's count of segments is not held against its length",
        "manifest",
        "    if len(raw) != MANIFEST_HEAD.size"
        " + DESCRIPTION.size * (count + 1) + CHECKSUM.size:\n",
        "    if count < 0:\n",
        "tests/test_manifest.py::test_a_count_that_does_not_fit_is_refused[2]",
    ),
    Bug(
        "impossible-numbers-believed",
        "a manifest may name numbers that no store can have",
        "manifest",
        "    if not manifest.possible():\n",
        "    if manifest.sequence < 0:\n",
        fuzz("limits closed"),
    ),
    Bug(
        "search-without-an-end",
        "each damaged place may be searched for as long as the first one",
        "recovery",
        "            offset, effort = next_whole_record(segment, error.offset, effort)\n",
        "            offset, _ = next_whole_record(segment, error.offset, effort)\n",
        fuzz("search 1"),
    ),
    Bug(
        "salvage-revives",
        "salvage copies records that were lost before",
        "salvage",
        "        if is_old and offset >= old_until:\n",
        "        if is_old and offset < 0:\n",
        fuzz("limits open"),
    ),
]

BUGS = [*SYNCS, *ORDER, *RECOVERY, *COMPACTION, *WRITING, *BYTES]
