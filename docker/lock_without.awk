# Prints of a lock file what the wheels named in `wheels` do not replace: where torch is among them, CUDA goes too,
# and torchvision, whose pinned build cannot be imported beside another torch.
BEGIN {
  count = split(wheels, paths, " ")
  for (i = 1; i <= count; i++) {
    sub(/.*\//, "", paths[i])
    sub(/-.*/, "", paths[i])
    gsub(/_/, "-", paths[i])
    given[tolower(paths[i])] = 1
  }
}
/^[a-z]/ {
  name = $1
  sub(/==.*/, "", name)
  kept = !(name in given) && !(("torch" in given) && name ~ /^(triton$|torchvision$|nvidia-|cuda-)/)
}
kept
