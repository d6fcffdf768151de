/* ls [-A] [DIRECTORY]: names, one a line. */
#include <dirent.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv) {
    int all = argc > 1 && strcmp(argv[1], "-A") == 0;
    const char *path = argc > 1 + all ? argv[1 + all] : "/";
    DIR *directory = opendir(path);
    if (!directory) {
        fprintf(stderr, "ls: ");
        perror(path);
        return 1;
    }
    for (struct dirent *entry; (entry = readdir(directory));)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..") && (all || entry->d_name[0] != '.'))
            puts(entry->d_name);
    closedir(directory);
    return 0;
}
