/* Prints what of a file a sync could have to write besides its bytes: its size, and where its blocks lie.
 *
 * One line `size BYTES blocks BLOCKS`, then for each extent `extent LOGICAL PHYSICAL LENGTH written|unwritten`, or the
 * line `no extents` where the file system cannot tell. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#define EXTENTS_MAX 4096

int main(int count, char **arguments) {
    struct stat status;
    int file = count == 2 ? open(arguments[1], O_RDONLY) : -1;
    if (file < 0 || fstat(file, &status) < 0) {
        perror("extents FILE");
        return 1;
    }
    printf("size %lld blocks %lld\n", (long long)status.st_size, (long long)status.st_blocks);
    struct fiemap *map = calloc(1, sizeof *map + EXTENTS_MAX * sizeof(struct fiemap_extent));
    if (!map) return 1;
    map->fm_length = FIEMAP_MAX_OFFSET;
    map->fm_extent_count = EXTENTS_MAX;
    if (ioctl(file, FS_IOC_FIEMAP, map) < 0) {
        if (errno != EOPNOTSUPP && errno != ENOTTY) {
            perror("FIEMAP");
            return 1;
        }
        puts("no extents");
        return 0;
    }
    for (unsigned i = 0; i < map->fm_mapped_extents; i++) {
        struct fiemap_extent *extent = &map->fm_extents[i];
        int unsettled = FIEMAP_EXTENT_UNWRITTEN | FIEMAP_EXTENT_DELALLOC | FIEMAP_EXTENT_UNKNOWN;
        printf("extent %llu %llu %llu %s\n", (unsigned long long)extent->fe_logical,
               (unsigned long long)extent->fe_physical, (unsigned long long)extent->fe_length,
               extent->fe_flags & unsettled ? "unwritten" : "written");
    }
    return 0;
}
